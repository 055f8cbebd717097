/**
 * Files of sparse patterns per layer and query head, in MInference's form: a list with one object per layer that maps a
 * head's number to `[pattern, first size, second size, score]`.
 *
 * @module
 */
import { z } from "zod";
import type { Sparsity } from "../types.ts";

/** MInference's name of a pattern. */
export type PatternName = "vertical_and_slash" | "stream_llm" | "block_sparse";

/** All of them. */
export const PATTERN_NAMES: readonly [PatternName, ...PatternName[]] = [
  "vertical_and_slash",
  "stream_llm",
  "block_sparse",
];

const FILE = z.array(z.record(
  z.string().regex(/^\d+$/, "heads are numbers"),
  z.tuple([
    z.enum(PATTERN_NAMES),
    z.int().min(0),
    z.int().min(0),
    z.number(),
  ]),
));

/** A pattern from its name and two sizes; too small sizes are raised to MInference's least. */
export function sparsityOf(
  name: PatternName,
  first: number,
  second: number,
): Sparsity {
  switch (name) {
    case "vertical_and_slash":
      return {
        kind: "lines",
        columns: Math.max(30, first),
        distances: Math.max(50, second),
      };
    case "stream_llm":
      return { kind: "ends", first, recent: Math.max(1, second) };
    case "block_sparse":
      // The authors' kernel takes 100 blocks whatever the sizes are; here the first size counts, and 0 means 100.
      return { kind: "blocks", blocks: first === 0 ? 100 : first };
  }
}

/**
 * Reads a file's text.
 * @returns per layer, per head; missing heads get `standard`
 * @throws {SyntaxError} when it is no such file; the message names the file and the place
 */
export function parsePatternFile(
  path: string,
  text: string,
  shape: { layers: number; queryHeads: number },
  standard: Sparsity,
): Sparsity[][] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(
      `Cannot read pattern file "${path}" as it must be JSON: ${
        (error as Error).message
      }`,
    );
  }
  const parsed = FILE.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new SyntaxError(
      `Cannot read pattern file "${path}" as it must be a list of {"head": [pattern, size, size, score]}: ${
        issue?.path.join(".") || "it"
      }: ${issue?.message}`,
    );
  }
  if (parsed.data.length !== shape.layers) {
    throw new RangeError(
      `Cannot use pattern file "${path}" as it must have ${shape.layers} layers: it has ${parsed.data.length}`,
    );
  }
  return parsed.data.map((heads, layer) => {
    const own = Array<Sparsity>(shape.queryHeads).fill(standard);
    for (const [head, [name, first, second]] of Object.entries(heads)) {
      if (Number(head) >= shape.queryHeads) {
        throw new RangeError(
          `Cannot use pattern file "${path}" as layer ${layer} must have ${shape.queryHeads} heads: it names head ${head}`,
        );
      }
      own[Number(head)] = sparsityOf(name, first, second);
    }
    return own;
  });
}
