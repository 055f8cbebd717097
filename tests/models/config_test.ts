// deno-lint-ignore-file camelcase -- fields of config.json keep their names
import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { ARCHITECTURES, parseModelConfig } from "../../models/mod.ts";
import { assertClear, brokenJson, goldenConfig, RUNS } from "./_fixtures.ts";

const FILE = "folder/config.json";

function parse(name: string, change: Record<string, unknown> = {}) {
  return parseModelConfig({ ...goldenConfig(name), ...change }, FILE);
}

Deno.test("parseModelConfig() reads every family's shape and flags", () => {
  const flags = (name: string) => {
    const c = parse(name);
    return [
      c.family,
      c.headDim,
      c.qkvBias,
      c.oBias,
      c.qkNorm,
      c.tied,
      c.experts,
      c.expertsUsed,
      c.normExpertProb,
      [...c.layerWindow],
    ];
  };
  const no = false;
  assertEquals(flags("llama"), ["llama", 16, no, no, no, no, 0, 0, no, [
    0,
    0,
    0,
  ]]);
  assertEquals(flags("llama31-tied"), [
    "llama",
    16,
    no,
    no,
    no,
    true,
    0,
    0,
    no,
    [0, 0, 0],
  ]);
  assertEquals(flags("mistral"), ["mistral", 16, no, no, no, no, 0, 0, no, [
    0,
    0,
    0,
  ]]);
  assertEquals(flags("mistral-swa"), ["mistral", 16, no, no, no, no, 0, 0, no, [
    32,
    32,
    32,
  ]]);
  assertEquals(flags("mixtral"), ["mixtral", 16, no, no, no, no, 4, 2, true, [
    0,
    0,
    0,
  ]]);
  assertEquals(flags("qwen2"), ["qwen2", 16, true, no, no, no, 0, 0, no, [
    0,
    0,
    0,
  ]]);
  assertEquals(flags("qwen3"), ["qwen3", 32, no, no, true, no, 0, 0, no, [
    0,
    0,
    0,
  ]]);
  const {
    layers,
    hidden,
    queryHeads,
    kvHeads,
    intermediate,
    vocab,
    normEps,
    maxPositions,
    dtype,
    eosIds,
    bosId,
  } = parse("llama");
  assertEquals(
    [
      layers,
      hidden,
      queryHeads,
      kvHeads,
      intermediate,
      vocab,
      normEps,
      maxPositions,
      dtype,
      eosIds,
      bosId,
    ],
    [3, 64, 4, 2, 160, 256, 1e-5, 512, "f32", [2], 1],
  );
});

Deno.test("parseModelConfig() reads the old style of rotary parameters", () => {
  const old = (scaling: unknown) =>
    parse("llama", {
      rope_parameters: undefined,
      rope_theta: 500_000,
      rope_scaling: scaling,
    });
  assertEquals(old(null).rope, { type: "default", theta: 500_000 });
  assertEquals(old({ type: "linear", factor: 2 }).rope, {
    type: "linear",
    theta: 500_000,
    factor: 2,
  });
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 64,
  };
  assertEquals(old(llama3).invFreq, parse("llama31-tied").invFreq);
});

Deno.test("parseModelConfig() fills in YaRN's missing fields", () => {
  const yarn = parse("qwen2", {
    max_position_embeddings: 131_072,
    rope_parameters: {
      rope_type: "yarn",
      rope_theta: 1e6,
      original_max_position_embeddings: 32_768,
    },
  });
  assertEquals(yarn.rope, { type: "yarn", theta: 1e6, factor: 4 });
  assert(Math.abs(yarn.ropeScale - (0.1 * Math.log(4) + 1)) < 1e-12);
});

Deno.test("parseModelConfig() refuses rotary scaling that it does not know", () => {
  for (const rope_type of ["dynamic", "longrope", "mrope"]) {
    assertThrows(
      () => parse("llama", { rope_parameters: { rope_type, factor: 2 } }),
      RangeError,
      `rope_parameters.rope_type must be one of "default", "linear", "llama3", "yarn": "${rope_type}"`,
    );
  }
});

Deno.test("parseModelConfig() gives windows to the layers that the file names", () => {
  const swa = { sliding_window: 128, use_sliding_window: true };
  const windows = (name: string, change: Record<string, unknown>) => [
    ...parse(name, { layer_types: undefined, ...change }).layerWindow,
  ];
  assertEquals(windows("qwen2", { ...swa, max_window_layers: 2 }), [0, 0, 128]);
  assertEquals(windows("qwen3", { ...swa, max_window_layers: 28 }), [0, 0, 0]);
  const layer_types = [
    "sliding_attention",
    "full_attention",
    "sliding_attention",
  ];
  assertEquals(windows("qwen2", { ...swa, layer_types }), [128, 0, 128]);
  assertEquals(
    windows("qwen2", { ...swa, use_sliding_window: false, layer_types }),
    [0, 0, 0],
  );
  assertEquals(windows("mistral", { sliding_window: undefined }), [
    4096,
    4096,
    4096,
  ]);
  assertEquals(windows("mixtral", { sliding_window: undefined }), [0, 0, 0]);
  assertEquals(windows("mixtral", { sliding_window: 7 }), [7, 7, 7]);
});

Deno.test("parseModelConfig() applies attention_bias to all four projections", () => {
  const { qkvBias, oBias } = parse("llama", { attention_bias: true });
  assertEquals([qkvBias, oBias], [true, true]);
});

Deno.test("parseModelConfig() takes head_dim from the file, or hidden over heads", () => {
  assertEquals(parse("llama", { head_dim: null }).headDim, 16);
  assertEquals(parse("llama", { head_dim: 128 }).headDim, 128);
  assertEquals(parse("qwen3", { head_dim: undefined }).headDim, 128);
  assertThrows(() => parse("llama", { head_dim: 15 }), RangeError, "even");
  assertThrows(() => parse("llama", { head_dim: 512 }), RangeError, "256");
});

Deno.test("parseModelConfig() reads the dtype under both names", () => {
  const of = (change: Record<string, unknown>) =>
    parse("llama", { dtype: undefined, ...change }).dtype;
  assertEquals(of({}), "f32");
  assertEquals(of({ torch_dtype: "bfloat16" }), "bf16");
  assertEquals(of({ dtype: "float16" }), "f16");
  assertThrows(() => of({ dtype: "int8" }), RangeError, '"int8"');
});

Deno.test("parseModelConfig() refuses what the runtime does not do, naming file and field", () => {
  const refused: [string, unknown][] = [
    ["hidden_act", "gelu"],
    ["mlp_bias", true],
    ["pretraining_tp", 2],
    ["partial_rotary_factor", 0.5],
    ["attn_logit_softcapping", 50],
    ["final_logit_softcapping", 30],
    ["quantization_config", { bits: 4 }],
  ];
  for (const [field, value] of refused) {
    const error = assertThrows(
      () => parse("llama", { [field]: value }),
      RangeError,
      field,
    );
    assert(error.message.includes(FILE));
  }
});

Deno.test("parseModelConfig() lists the known architectures, the nearest first", () => {
  const error = assertThrows(
    () => parse("llama", { architectures: ["Qwen2MoeForCausalLM"] }),
    RangeError,
    "Qwen2ForCausalLM",
  );
  for (const name of ARCHITECTURES) assert(error.message.includes(name));
  assert(
    error.message.indexOf("Qwen2ForCausalLM") <
      error.message.indexOf("LlamaForCausalLM"),
  );
});

Deno.test("parseModelConfig() names a field that is missing or has the wrong type", () => {
  assertThrows(
    () => parse("llama", { hidden_size: undefined }),
    SyntaxError,
    '"hidden_size"',
  );
  assertThrows(
    () => parse("llama", { num_hidden_layers: "3" }),
    SyntaxError,
    '"num_hidden_layers"',
  );
  assertThrows(
    () => parse("llama", { rope_parameters: { rope_theta: "x" } }),
    SyntaxError,
    '"rope_parameters.rope_theta"',
  );
  assertThrows(
    () => parse("llama", { num_key_value_heads: 3 }),
    RangeError,
    "num_key_value_heads must divide",
  );
});

Deno.test("parseModelConfig() fails clearly on any broken file", () => {
  for (const name of ["llama31-tied", "mixtral", "qwen2"]) {
    fc.assert(
      fc.property(brokenJson(goldenConfig(name)), (json) => {
        assertClear(() => {
          const { invFreq, layerWindow } = parseModelConfig(json, FILE);
          assert(invFreq.every(Number.isFinite));
          assert(layerWindow.length > 0);
        }, FILE);
      }),
      RUNS,
    );
  }
});
