import { openModelFolder } from "../../models/mod.ts";
import type { Call } from "../spec.ts";
import { bytes, printColumns, printJson } from "./_runtime.ts";

/** `kvf models inspect`. */
export function modelsInspectAction({ args, flags }: Call): Promise<number> {
  const folder = openModelFolder(args[0]!);
  const summary = folder.inspect();
  if (flags.json) {
    printJson({ ...summary, hash: folder.hash() });
    return Promise.resolve(0);
  }
  const { shape } = summary;
  printColumns([
    ["architecture", `${summary.architecture} (${summary.family})`],
    [
      "parameters",
      `${(summary.parameters / 1e6).toFixed(1)} million, ${
        bytes(summary.weightBytes)
      } in ${summary.weightFiles.join(", ")}`,
    ],
    [
      "layers",
      `${shape.layers}, hidden ${shape.hidden}, intermediate ${shape.intermediate}, vocabulary ${shape.vocab}`,
    ],
    [
      "heads",
      `${shape.queryHeads} query, ${shape.kvHeads} KV, of ${shape.headDim}`,
    ],
    [
      "experts",
      shape.experts === 0
        ? "none"
        : `${shape.experts}, ${shape.expertsUsed} used`,
    ],
    ["dtype", summary.dtype],
    [
      "positions",
      `${summary.maxPositions}, rope ${summary.rope.type}, theta ${summary.rope.theta}`,
    ],
    ["windows", JSON.stringify(summary.windows)],
    ["features", summary.features.join(", ") || "none"],
    ["stop ids", summary.stopIds.join(", ") || "none"],
    [
      "tokenizer",
      summary.tokenizer === null
        ? "none"
        : `${summary.tokenizer.vocabSize} entries, chat template: ${
          summary.tokenizer.chatTemplate ? "yes" : "no"
        }`,
    ],
    [
      "cache",
      `${
        bytes(summary.cacheBytesPerToken[summary.dtype])
      } a token in ${summary.dtype}`,
    ],
    ["hash", folder.hash()],
  ]);
  return Promise.resolve(0);
}
