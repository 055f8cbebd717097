// deno-lint-ignore-file no-console -- the command line prints
import { probe } from "../../eval/probe.ts";
import { loadMethod } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";
import { writeSafetensors } from "../../models/mod.ts";
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
  const output = text(flags, "output");
  const applied = await probe({
    input: text(flags, "input")!,
    method,
    options: { ...options, ...methodOptions([method], rest) },
    names: {
      q: text(flags, "q")!,
      k: text(flags, "k")!,
      v: text(flags, "v")!,
      lowerK: text(flags, "lowerK"),
      lowerV: text(flags, "lowerV"),
    },
    ropeTheta: flags.ropeTheta as number | undefined,
    granularity: text(flags, "granularity") as Granularity,
    layer: flags.layer as number,
    layers: flags.layers as number,
    rows: output !== undefined,
  });
  const { headDim } = applied;
  if (output !== undefined) {
    const tensors = (keys: Float32Array[], values: Float32Array[], at = "") =>
      keys.flatMap((data, head) => {
        const shape = [data.length / headDim, headDim];
        return [
          [`${at}k.${head}`, { shape, data }],
          [`${at}v.${head}`, { shape, data: values[head]! }],
        ];
      });
    const { keys, values, lower } = applied;
    writeSafetensors(
      output,
      Object.fromEntries([
        ...tensors(keys!, values!),
        ...(lower ? tensors(lower.keys, lower.values, "lower.") : []),
      ]),
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
