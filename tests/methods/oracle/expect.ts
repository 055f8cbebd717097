/**
 * What a method must keep of recorded tensors, and whether it does.
 *
 * @module
 */
import type { Applied } from "../../../eval/apply.ts";
import {
  type Choice,
  everything,
  NEAR,
  ranked,
  upTo,
  wrong,
} from "./choice.ts";
import * as evict from "./evict.ts";
import { type Row, rowOf, sourceOf } from "./layer.ts";
import {
  cam,
  channelScores,
  earlyRows,
  merged,
  think,
  type ThinkOptions,
} from "./merge.ts";
import { quest } from "./quest.ts";

// deno-lint-ignore no-explicit-any -- each method knows its own options
type AnyTask = evict.Task<any>;

/** Each stored head's choices: any of them is right. */
export function choicesOf(method: string, task: AnyTask): Choice[][] {
  const single = CHOICES[method];
  if (single !== undefined) return single(task).map((choice) => [choice]);
  if (method === "quest") return quest(task);
  throw new RangeError(`The oracle has not read of ${method}`);
}

const CHOICES: Record<string, (task: AnyTask) => Choice[]> = {
  snapkv: evict.snapkv,
  pyramidkv: evict.pyramidkv,
  adakv: evict.adakv,
  headkv: evict.headkv,
  h2o: evict.h2o,
  streamingllm: evict.streamingllm,
  l2norm: evict.l2norm,
  nacl: evict.nacl,
  scissorhands: evict.scissorhands,
  cam: (task) => cam(task).choices,
  think,
  fullkv: ({ input, storedHeads }) =>
    upTo(storedHeads).map(() => everything(upTo(input.tokens))),
};

/** How often rows could be compared, and how often a near tie left them open. */
export interface Tally {
  compared: number;
  open: number;
}

/** Throws unless a method kept what it must, and rows are what they must be. */
export function check(
  method: string,
  task: AnyTask,
  applied: Applied<unknown>,
  tally: Tally = { compared: 0, open: 0 },
): void {
  const { input, storedHeads, options } = task;
  const choices = choicesOf(method, task);
  if (applied.positions.length !== choices.length) {
    throw new Error(`${applied.positions.length} heads, not ${choices.length}`);
  }
  // Averages of the same scores may be summed in different orders, so that equal ones differ in their last bits.
  const strict = options.pool !== "avg" || options.poolWidth === 1;
  const camValues = method === "cam" ? cam(task) : undefined;
  applied.positions.forEach((positions, head) => {
    const faults = choices[head]!.map((choice) =>
      wrong(positions, choice, strict)
    );
    if (faults.every((fault) => fault !== undefined)) {
      throw new Error(`${method}, head ${head}: ${faults[0]}`);
    }
    if (
      method !== "think" && positions.some((p, i) => p <= positions[i - 1]!)
    ) {
      throw new Error(`${method}, head ${head}: positions do not ascend`);
    }
    if (applied.keys === undefined || applied.values === undefined) return;
    const source = sourceOf(input, storedHeads, head);
    const plain = (what: "k" | "v") =>
      positions.map((p) => Float64Array.from(rowOf(input, what, source, p)));
    let expected: { keys: Row[]; values: Row[]; uncertain: boolean } = {
      keys: plain("k"),
      values: plain("v"),
      uncertain: false,
    };
    let exact = true;
    if (options.merge === "pivot" || options.merge === "weighted") {
      expected = merged(input, source, positions, options.merge);
      exact = positions.length === input.tokens;
    }
    if (camValues !== undefined) {
      expected.values = positions.map((p) => camValues.values[head]![p]!);
      expected.uncertain = camValues.uncertain[head]!;
      exact = false;
    }
    if (method === "think") {
      expected = pruned(task, head, positions, choices[head]![0]!, {
        given: applied.keys[head]!,
        values: expected.values,
        strict,
      });
    }
    if (expected.uncertain) {
      tally.open++;
      return;
    }
    tally.compared++;
    const { headDim } = input;
    for (const what of ["keys", "values"] as const) {
      const rows = applied[what]![head]!;
      if (rows.length !== positions.length * headDim) {
        throw new Error(`${rows.length} elements of ${what}`);
      }
      expected[what].forEach((row, i) =>
        row.forEach((x, d) => {
          const y = rows[i * headDim + d]!;
          const room = exact ? 0 : 1e-5 * (1 + Math.abs(x));
          if (!(Math.abs(x - y) <= room)) {
            throw new Error(
              `${method}, head ${head}: ${what} of position ${
                positions[i]
              }, channel ${d}: ${y}, not ${x}`,
            );
          }
        })
      );
    }
  });
}

/** ThinK: rows with channels missing. Which rows are whole is read off, and must be right up to near ties. */
function pruned(
  task: evict.Task<ThinkOptions & { compat: string }>,
  head: number,
  positions: number[],
  choice: Choice,
  { given, values, strict }: {
    given: ArrayLike<number>;
    values: Row[];
    strict: boolean;
  },
): { keys: Row[]; values: Row[]; uncertain: boolean } {
  const { input, storedHeads, options } = task;
  const { headDim, tokens } = input;
  const { budget, fullRows, pruneRatio } = options;
  const source = sourceOf(input, storedHeads, head);
  const keys = positions.map((p) =>
    Float64Array.from(rowOf(input, "k", source, p))
  );
  const drop = Math.trunc(headDim * pruneRatio);
  if (tokens < budget || drop === 0) return { keys, values, uncertain: false };
  const scores = channelScores(task, head, positions);
  const channels = ranked(upTo(headDim), scores);
  const kept = channels.slice(0, headDim - drop);
  const cut = scores[kept.at(-1) ?? 0]!;
  const uncertain = kept.length > 0 &&
    Math.abs(scores[channels[headDim - drop]!]! - cut) <= NEAR * cut;
  const gone = channels.slice(headDim - drop);
  const early = Math.max(0, positions.length - fullRows);
  const whole = new Set(
    positions.filter((_, i) => gone.some((d) => given[i * headDim + d] !== 0)),
  );
  const prunedRows = positions.filter((p) => !whole.has(p));
  if (options.compat === "reference") {
    const fault = wrong(prunedRows, earlyRows(choice, early), strict);
    if (fault !== undefined && !uncertain) {
      throw new Error(`think, head ${head}, pruned rows: ${fault}`);
    }
  } else {
    const expected = positions.toSorted((a, b) => a - b).slice(0, early);
    if (
      !uncertain &&
      String(prunedRows.toSorted((a, b) => a - b)) !== String(expected)
    ) {
      throw new Error(
        `think, head ${head}: rows ${prunedRows} are pruned, not ${expected}`,
      );
    }
  }
  keys.forEach((row, i) => {
    if (!whole.has(positions[i]!)) { for (const d of gone) row[d] = 0; }
  });
  return { keys, values, uncertain };
}
