/**
 * Patterns of sparse attention in the library's form.
 *
 * @module
 */
import type { Sparsity } from "../methods/types.ts";
import { checkInteger } from "./_check.ts";

/** `[heads, 3] u32`: kind and two sizes. */
export function encodeSparsity(
  action: string,
  heads: readonly Sparsity[],
): Uint32Array<ArrayBuffer> {
  const size = (name: string, value: number, least: number) =>
    checkInteger(action, name, value, least);
  const triple = (head: Sparsity): number[] => {
    switch (head.kind) {
      case "all":
        return [0, 0, 0];
      case "lines":
        return [
          1,
          size("columns", head.columns, 30),
          size("distances", head.distances, 50),
        ];
      case "ends":
        return [
          2,
          size("first", head.first, 0),
          size("recent", head.recent, 1),
        ];
      case "blocks":
        return [3, size("blocks", head.blocks, 1), 0];
      default: {
        const { kind } = head as { kind: unknown };
        throw new TypeError(
          `Cannot ${action} as the kind must be all, lines, ends or blocks: it is ${
            JSON.stringify(kind)
          }`,
        );
      }
    }
  };
  return Uint32Array.from(heads.flatMap(triple));
}
