/** Memory while a model loads, seen from outside: a process of its own, and what the system says of it. */
import { assert } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));
const SHAPE = { hidden: 2048, kv: 512, inner: 5632, vocab: 4096, layers: 2 };

/** A model folder of about 200 MB whose weights are all zero: a file with a hole takes no room on the disk. */
function writeFolder(folder: string): void {
  const { hidden, kv, inner, vocab, layers } = SHAPE;
  const shapes: Record<string, number[]> = {
    "model.embed_tokens.weight": [vocab, hidden],
    "model.norm.weight": [hidden],
    "lm_head.weight": [vocab, hidden],
  };
  for (let i = 0; i < layers; i++) {
    const parts: Record<string, number[]> = {
      "input_layernorm": [hidden],
      "post_attention_layernorm": [hidden],
      "self_attn.q_proj": [hidden, hidden],
      "self_attn.k_proj": [kv, hidden],
      "self_attn.v_proj": [kv, hidden],
      "self_attn.o_proj": [hidden, hidden],
      "mlp.gate_proj": [inner, hidden],
      "mlp.up_proj": [inner, hidden],
      "mlp.down_proj": [hidden, inner],
    };
    for (const [name, shape] of Object.entries(parts)) {
      shapes[`model.layers.${i}.${name}.weight`] = shape;
    }
  }
  const header: Record<string, unknown> = {};
  let at = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const bytes = 2 * shape.reduce((product, n) => product * n, 1);
    header[name] = { dtype: "BF16", shape, "data_offsets": [at, at + bytes] };
    at += bytes;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const head = new Uint8Array(8 + text.length);
  new DataView(head.buffer).setBigUint64(0, BigInt(text.length), true);
  head.set(text, 8);
  const path = `${folder}/model.safetensors`;
  Deno.writeFileSync(path, head);
  Deno.truncateSync(path, head.length + at);
  Deno.writeTextFileSync(
    `${folder}/config.json`,
    JSON.stringify({
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "hidden_size": hidden,
      "intermediate_size": inner,
      "num_hidden_layers": layers,
      "num_attention_heads": 16,
      "num_key_value_heads": 4,
      "vocab_size": vocab,
      "max_position_embeddings": 4096,
      "rms_norm_eps": 1e-5,
      "rope_theta": 10000,
      "hidden_act": "silu",
      "tie_word_embeddings": false,
      "torch_dtype": "bfloat16",
    }),
  );
}

Deno.test({
  name: "loading peaks at the weights and 5 % more",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const folder = `${ROOT}/results/load-memory-${Deno.pid}`;
    Deno.mkdirSync(folder, { recursive: true });
    try {
      writeFolder(folder);
      const { code, stdout, stderr } = await new Deno.Command("deno", {
        env: CHILD_ENV,
        args: [
          "run",
          "-q",
          "--no-prompt",
          `--allow-read=${ROOT}`,
          `--allow-ffi=${ROOT}/build/libkvf.so`,
          "tests/models/_load_peak.ts",
          folder,
        ],
        cwd: ROOT,
      }).output();
      assert(code === 0, new TextDecoder().decode(stderr));
      const { weights, peak } = JSON.parse(
        new TextDecoder().decode(stdout),
      ) as {
        weights: number;
        peak: number;
      };
      assert(weights > 200e6, `the weights have ${weights} bytes`);
      assert(peak >= weights, `${peak} bytes cannot hold ${weights}`);
      assert(
        peak <= 1.05 * weights,
        `memory grew by ${peak} bytes for ${weights} bytes of weights`,
      );
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  },
});
