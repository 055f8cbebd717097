// deno-lint-ignore-file no-console -- the command line prints
import { applyMethod } from "../../eval/apply.ts";
import { Device } from "../../ffi/mod.ts";
import { loadMethod } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";
import { readTensor, writeSafetensors } from "../../models/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { methodOptions, printJson } from "./_runtime.ts";

/** `kvf apply`. */
export async function applyAction({ flags, rest }: Call): Promise<number> {
  const method = await loadMethod(text(flags, "method")!);
  let options: unknown;
  try {
    options = JSON.parse(text(flags, "options") ?? "{}");
  } catch (error) {
    throw new UsageError(
      `Cannot use --options as it must be a JSON object: ${
        (error as Error).message
      }`,
    );
  }
  if (
    typeof options !== "object" || options === null || Array.isArray(options)
  ) {
    throw new UsageError(
      `Cannot use --options as it must be a JSON object: it is ${
        JSON.stringify(options)
      }`,
    );
  }
  const input = text(flags, "input")!;
  const [q, k, v] = ["q", "k", "v"].map((role) => {
    const name = text(flags, role)!;
    const tensor = readTensor(input, name);
    if (tensor.shape.length !== 3) {
      throw new UsageError(
        `Cannot use tensor "${name}" of ${input} as its shape must be [heads, tokens, headDim]: it is [${tensor.shape}]`,
      );
    }
    return tensor;
  });
  const [queryHeads, tokens, headDim] = q!.shape as [number, number, number];
  if (
    k!.shape[1] !== tokens || k!.shape[2] !== headDim ||
    String(v!.shape) !== String(k!.shape)
  ) {
    throw new UsageError(
      `Cannot apply as q, k and v must have equal tokens and headDim: they are [${
        q!.shape
      }], [${k!.shape}], [${v!.shape}]`,
    );
  }
  using device = new Device();
  const output = text(flags, "output");
  const applied = applyMethod({
    method,
    options: { ...options, ...methodOptions([method], rest) },
    q: Float32Array.from(q!.data),
    k: Float32Array.from(k!.data),
    v: Float32Array.from(v!.data),
    shape: { queryHeads, kvHeads: k!.shape[0]!, headDim },
    granularity: text(flags, "granularity") as Granularity,
    layer: flags.layer as number,
    layers: Math.max(flags.layers as number, (flags.layer as number) + 1),
    device,
    rows: output !== undefined,
  });
  if (output !== undefined) {
    writeSafetensors(
      output,
      Object.fromEntries(
        applied.positions.flatMap((rows, head) => [
          [`k.${head}`, {
            shape: [rows.length, headDim],
            data: applied.keys![head]!,
          }],
          [`v.${head}`, {
            shape: [rows.length, headDim],
            data: applied.values![head]!,
          }],
        ]),
      ),
    );
  }
  if (flags.json) {
    printJson({
      method: method.name,
      options: applied.options,
      rows: applied.positions,
    });
  } else {applied.positions.forEach((rows, head) =>
      console.log(`head ${head}: ${rows.length} rows: ${rows.join(" ")}`)
    );}
  return 0;
}
