import {
  assert,
  assertEquals,
  assertNotEquals,
  assertThrows,
} from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { openModelFolder } from "../../models/mod.ts";
import {
  assertClear,
  brokenBytes,
  brokenJson,
  byteLevelTokenizer,
  GOLDEN_MODELS,
  GOLDEN_NAMES,
  goldenConfig,
  RUNS,
  temporaryFolder,
} from "./_fixtures.ts";

/** A copy of a golden model with some small files beside it. */
function copyModel(
  name: string,
  files: Record<string, unknown> = {},
): { path: string } & Disposable {
  const folder = temporaryFolder();
  for (const file of ["config.json", "model.safetensors"]) {
    Deno.copyFileSync(join(GOLDEN_MODELS, name, file), join(folder.path, file));
  }
  for (const [file, json] of Object.entries(files)) {
    write(folder.path, file, json);
  }
  return folder;
}

function write(folder: string, file: string, content: unknown): void {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  Deno.writeTextFileSync(join(folder, file), text);
}

/** A tokenizer whose ids fit the 256 rows of the golden models: BOS 250, EOS 251, end of turn 252. */
function smallTokenizer(): Record<string, unknown> {
  const json = byteLevelTokenizer();
  const model = json["model"] as { vocab: Record<string, number> };
  const bytes = Object.entries(model.vocab).filter(([, id]) => id < 256);
  Object.assign(model, { merges: [], vocab: Object.fromEntries(bytes) });
  (json["added_tokens"] as { id: number }[]).forEach((t) => t.id -= 50);
  return json;
}

for (const name of GOLDEN_NAMES) {
  Deno.test(`openModelFolder() opens ${name}`, () => {
    const model = openModelFolder(join(GOLDEN_MODELS, name));
    assertEquals(model.tokenizer, undefined);
    assertEquals(model.generation.stopIds, [2]);
    assertEquals(model.weightFiles.length, 1);
    const facts = model.inspect();
    assertEquals(facts.family, name.split(/-|31/)[0]);
    assertEquals(facts.weightBytes, 4 * facts.parameters);
    assertEquals(facts.dtype, "f32");
    assertEquals(
      facts.cacheBytesPerToken.bf16,
      2 * 2 * 3 * 2 * facts.shape.headDim,
    );
    assertEquals(
      facts.windows,
      name === "mistral-swa" ? { 32: 3 } : { none: 3 },
    );
  });
}

Deno.test("openModelFolder() collects stop tokens in the order in which they are found", () => {
  using folder = copyModel("llama", {
    "tokenizer.json": smallTokenizer(),
    "tokenizer_config.json": { eos_token: "<eos>" },
    "generation_config.json": {
      eos_token_id: [9, 7, 9, 999],
      do_sample: true,
      temperature: 0.6,
      top_k: 20,
      top_p: 0.9,
    },
  });
  const { generation, tokenizer } = openModelFolder(folder.path);
  assertEquals(tokenizer?.eosId, 251);
  assertEquals(generation, {
    stopIds: [9, 7, 2, 251, 252],
    doSample: true,
    temperature: 0.6,
    topK: 20,
    topP: 0.9,
  });
});

Deno.test("openModelFolder() reads the chat template's file", () => {
  using folder = copyModel("llama", {
    "tokenizer.json": smallTokenizer(),
    "chat_template.jinja": "{{ messages[0].content }}!",
  });
  const { tokenizer, inspect } = openModelFolder(folder.path);
  assertEquals(tokenizer?.applyChat([{ role: "user", content: "a" }]), "a!");
  assertEquals(inspect().tokenizer, { vocabSize: 256, chatTemplate: true });
});

Deno.test("openModelFolder() takes the weights' dtype where config.json is silent", () => {
  const { dtype: _, ...config } = goldenConfig("llama");
  using folder = copyModel("llama", { "config.json": config });
  assertEquals(openModelFolder(folder.path).config.dtype, "f32");
});

Deno.test("openModelFolder() says what a folder lacks", () => {
  using folder = temporaryFolder();
  const open = () => openModelFolder(folder.path);
  assertThrows(open, Deno.errors.NotFound, "config.json");
  write(folder.path, "config.json", goldenConfig("llama"));
  assertThrows(open, Deno.errors.NotFound, "model.safetensors");
  write(folder.path, "config.json", { architectures: ["GPT2LMHeadModel"] });
  assertThrows(open, RangeError, "LlamaForCausalLM");
});

Deno.test("ModelFolder.hash() depends on what the folder holds, not on where it lies", () => {
  using one = copyModel("llama");
  using two = copyModel("llama");
  const hash = (folder: { path: string }) =>
    openModelFolder(folder.path).hash();
  const before = hash(one);
  assertEquals(before.length, 64);
  assertEquals(hash(two), before);
  assertNotEquals(
    openModelFolder(join(GOLDEN_MODELS, "llama31-tied")).hash(),
    before,
  );
  write(two.path, "tokenizer.json", smallTokenizer());
  assertNotEquals(hash(two), before);
  // The last byte of the last tensor.
  const weights = join(one.path, "model.safetensors");
  const bytes = Deno.readFileSync(weights);
  bytes[bytes.length - 1]! ^= 1;
  Deno.writeFileSync(weights, bytes);
  assertNotEquals(hash(one), before);
});

Deno.test("openModelFolder() fails clearly when any of its small files is broken", () => {
  const files: Record<string, Record<string, unknown>> = {
    "config.json": goldenConfig("llama"),
    "tokenizer_config.json": {
      bos_token: { content: "<bos>" },
      eos_token: "<eos>",
      chat_template: [{ name: "default", template: "{{ messages }}" }],
      clean_up_tokenization_spaces: true,
    },
    "generation_config.json": {
      eos_token_id: [1, 2],
      temperature: 1,
      top_k: 1,
      top_p: 1,
      do_sample: false,
    },
  };
  using folder = copyModel("llama", {
    ...files,
    "tokenizer.json": smallTokenizer(),
  });
  const open = () => {
    const model = openModelFolder(folder.path);
    assert(model.generation.stopIds.every((id) => id >= 0 && id < 256));
    model.inspect();
  };
  open();
  for (const [file, json] of Object.entries(files)) {
    const path = join(folder.path, file);
    const text = JSON.stringify(json);
    const runs = { ...RUNS, numRuns: 60 };
    fc.assert(
      fc.property(brokenJson(json), (broken) => {
        write(folder.path, file, broken);
        assertClear(open, folder.path);
      }),
      runs,
    );
    fc.assert(
      fc.property(brokenBytes(new TextEncoder().encode(text)), (bytes) => {
        Deno.writeFileSync(path, bytes);
        assertClear(open, folder.path);
      }),
      runs,
    );
    write(folder.path, file, text);
  }
});
