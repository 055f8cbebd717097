/**
 * Which rows Quest reads for the last query.
 *
 * @module
 */
import { type Choice, everything, NEAR, ranked, upTo } from "./choice.ts";
import type { Task } from "./evict.ts";
import {
  type Layer,
  perStoredHead,
  type Reduce,
  type Row,
  rowOf,
} from "./layer.ts";

/** Options of Quest. */
export interface QuestOptions {
  budget: number;
  pageSize: number;
  window: number;
  denseLayers: number;
  groupReduce: Reduce;
  /** The reference's exact number of rows, or whole pages. */
  compat: "reference" | "paper";
}

/** Upper bounds of a query's products with the keys of each page of the first `rows` positions. */
function pageBounds(
  input: Layer,
  queryHead: number,
  rows: number,
  pageSize: number,
): Row {
  const { tokens, queryHeads, kvHeads, headDim } = input;
  const kvHead = Math.floor(queryHead * kvHeads / queryHeads);
  const q = rowOf(input, "q", queryHead, tokens - 1);
  return Float64Array.from(upTo(Math.ceil(rows / pageSize)), (page) => {
    let bound = 0;
    for (let d = 0; d < headDim; d++) {
      let [low, high] = [Infinity, -Infinity];
      for (
        let p = page * pageSize;
        p < Math.min(rows, (page + 1) * pageSize);
        p++
      ) {
        const x = rowOf(input, "k", kvHead, p)[d]!;
        low = Math.min(low, x);
        high = Math.max(high, x);
      }
      bound += q[d]! * (q[d]! >= 0 ? high : low);
    }
    return bound;
  });
}

/** What each head may read: several answers where page scores are near. */
export function quest(task: Task<QuestOptions>): Choice[][] {
  const { input, storedHeads, layer, options } = task;
  const { budget, pageSize, window, denseLayers, groupReduce, compat } =
    options;
  const { tokens } = input;
  if (layer < denseLayers || budget >= tokens) {
    return upTo(storedHeads).map(() => [everything(upTo(tokens))]);
  }
  const recent = Math.min(tokens, window, budget);
  const prefix = tokens - recent;
  const last = upTo(tokens).slice(prefix);
  const room = budget - recent;
  if (room === 0) return upTo(storedHeads).map(() => [everything(last)]);
  const pages = Math.ceil(prefix / pageSize);
  let wanted = Math.ceil(room / pageSize);
  const isExact = compat === "reference";
  if (isExact && prefix % pageSize !== 0 && wanted < pages) wanted++;
  const bounds = perStoredHead(
    input,
    storedHeads,
    upTo(input.queryHeads)
      .map((head) => pageBounds(input, head, prefix, pageSize)),
    groupReduce,
  );
  return bounds.map((scores) =>
    pageSets(scores, Math.min(wanted, pages)).map((chosen) =>
      everything([
        ...chosen.sort((a, b) => a - b)
          .flatMap((page) => upTo(pageSize).map((i) => page * pageSize + i))
          .filter((p) => p < prefix)
          .slice(0, isExact ? room : prefix),
        ...last,
      ])
    )
  );
}

/** The best pages, and the same with one exchanged for another whose score is near. */
function pageSets(scores: Row, count: number): number[][] {
  const order = ranked(upTo(scores.length), scores);
  const best = order.slice(0, count);
  const cut = scores[best.at(-1)!]!;
  // Bounds are sums of products that may cancel: near is relative to the largest.
  const most = Math.max(...scores.map(Math.abs));
  const isNear = (page: number) =>
    Math.abs(scores[page]! - cut) <= NEAR * most && scores[page] !== cut;
  const others = order.slice(count).filter(isNear);
  return [
    best,
    ...others.flatMap((other) =>
      best.filter((page) => isNear(page) || page === best.at(-1))
        .map((page) => [...best.filter((p) => p !== page), other])
    ),
  ];
}
