/**
 * How many bytes prompts and configurations will need, from the ledger's own arithmetic, before any work.
 *
 * The numbers are upper bounds: a page that is shared is counted once per owner where it may become owned, a head may
 * leave its last page almost empty, every answer may be as long as allowed.
 *
 * @module
 */
import {
  BOUND_BLOCKS,
  type MergedObservation,
  mergeObservations,
  type Operation,
  PAGE_ROWS,
  recordProgram,
  SEGMENT_ROWS,
  type Sequence,
} from "../../ffi/mod.ts";
import type { Policy } from "../../methods/types.ts";
import type { LanguageModel } from "./language_model.ts";
import { type Configuration, InvariantError } from "./types.ts";

/** A configuration with the policy that acts for one sequence. */
export interface Member {
  /** The configuration. */
  configuration: Configuration;
  /** Its policy. */
  policy: Policy;
}

/** Bytes of one sequence that holds `rows` rows in each of `heads` heads of one layer. */
function layerBytes(model: LanguageModel, heads: number, rows: number): number {
  return heads * Math.ceil(rows / PAGE_ROWS) * model.cache.pageBytes;
}

/** Heads whose pages a member's prefill owns: those of the model, or all stored ones where it changes them. */
function prefillHeads(
  model: LanguageModel,
  { policy, configuration }: Member,
): number {
  const own = policy.beforeAttention !== undefined &&
    configuration.granularity === "query_head";
  return own ? model.shape.queryHeads : model.shape.kvHeads;
}

/** Bytes of a prompt's full cache, all layers, as the member's prefill leaves it. */
export function fullBytes(
  model: LanguageModel,
  member: Member,
  length: number,
): number {
  return model.shape.layers * oneLayerBytes(model, member, length);
}

/** Bytes of the largest thing that layer-by-layer compression holds beside its results: one layer's full rows. */
export function oneLayerBytes(
  model: LanguageModel,
  member: Member,
  length: number,
): number {
  return layerBytes(model, prefillHeads(model, member), length);
}

/** Whether the member's sequence keeps sharing all pages of the prompt. */
export function keepsAll(model: LanguageModel, member: Member): boolean {
  const { policy } = member;
  return policy.afterPrefill === undefined && policy.again === undefined &&
    Array.from({ length: model.shape.layers }, (_, layer) => layer)
      .every((layer) =>
        programOf(model, member, layer, 1, 1).every(({ kind }) =>
          kind !== "evict"
        )
      );
}

/** Holds the ledger's promise against what the tables hold. */
export function checkLedger({ configuration }: Member, sequence: Sequence): {
  promisedBytes: number;
  residentBytes: number;
} {
  const { promisedBytes, ownedBytes } = sequence.describe();
  if (promisedBytes === ownedBytes) {
    return { promisedBytes, residentBytes: ownedBytes };
  }
  throw new InvariantError(
    `Cannot go on as "${configuration.method.name}" must hold what it promised: it promised ${promisedBytes} bytes and holds ${ownedBytes}`,
  );
}

function programOf(
  model: LanguageModel,
  { policy }: Member,
  layer: number,
  heads: number,
  rows: number,
): Operation[] {
  return recordProgram(policy, {
    ...model.shape,
    layer,
    rows: Array<number>(heads).fill(rows),
    observation: mergeObservations([policy.observe]),
  });
}

/** Bytes that a step program keeps at most beside `rows` rows in each of `heads` heads of one layer. */
function programBytes(
  model: LanguageModel,
  member: Member,
  layer: number,
  heads: number,
  rows: number,
): number {
  return programOf(model, member, layer, heads, rows).reduce((bytes, op) => {
    const { queryHeads, headDim } = model.shape;
    switch (op.kind) {
      case "queries":
        return bytes + 4 * queryHeads * headDim * (op.last ?? 0);
      case "mass":
        return bytes +
          4 * queryHeads * SEGMENT_ROWS * Math.ceil(rows / SEGMENT_ROWS);
      case "pages": {
        const blocks = Math.ceil(rows / (op.page_rows ?? 1));
        return bytes +
          4 * heads * 2 * headDim * BOUND_BLOCKS *
            Math.ceil(blocks / BOUND_BLOCKS);
      }
      default:
        return bytes;
    }
  }, 0);
}

/**
 * Bytes that a configuration's own pages take at most: what its policy may keep of a prompt, the rows of the answer
 * and the logits. A member that {@linkcode keepsAll} owns only what it appends.
 */
export function ownBytes(
  model: LanguageModel,
  member: Member,
  length: number,
  newTokens: number,
): number {
  const { shape, cache } = model;
  const heads = member.configuration.granularity === "query_head"
    ? shape.queryHeads
    : shape.kvHeads;
  const answerPages = shape.layers * heads * Math.ceil(newTokens / PAGE_ROWS);
  let pages = answerPages;
  const all = keepsAll(model, member);
  let bytes = 4 * model.native.config.vocab;
  for (let layer = 0; layer < shape.layers; layer++) {
    bytes += programBytes(model, member, layer, heads, length + newTokens);
    // A copy of the last page, which is the first thing written to.
    if (all) {
      pages += heads;
      continue;
    }
    const whole = heads * Math.ceil(length / PAGE_ROWS);
    const rows = member.policy.maxRows?.({
      ...shape,
      layer,
      length,
      storedHeads: heads,
    });
    pages += rows === undefined
      ? whole
      : Math.min(whole, Math.floor(rows / PAGE_ROWS) + heads);
  }
  return pages * cache.pageBytes + bytes;
}

/** Tokens whose projections and MLP are computed together, and queries that attend together, at most. */
const CHUNKS = {
  cpu: { tokens: 256, queries: Infinity },
  cuda: { tokens: 2048, queries: 8192 },
};

/**
 * Bytes that the rows of a prompt take at least when a member's policy has acted on all layers and keeps what it may;
 * undefined where its policy does not tell.
 */
export function keptBytes(
  model: LanguageModel,
  member: Member,
  length: number,
): number | undefined {
  const { policy, configuration } = member;
  const { shape } = model;
  if (keepsAll(model, member)) return fullBytes(model, member, length);
  if (policy.packs || policy.maxRows === undefined) return undefined;
  const storedHeads = configuration.granularity === "query_head"
    ? shape.queryHeads
    : shape.kvHeads;
  let bytes = 0;
  for (let layer = 0; layer < shape.layers; layer++) {
    const rows = policy.maxRows({ ...shape, layer, length, storedHeads });
    // Heads that keep everything go on sharing it.
    bytes += rows < storedHeads * length
      ? layerBytes(model, 1, rows)
      : oneLayerBytes(model, member, length);
  }
  return bytes;
}

/** Queries of a tile, and rows of a block of its probabilities, on a CPU. */
const TILE = { queries: 96, rows: 128 };

/** What a CPU keeps to add columns up: probabilities of a tile for each thread, and sums of the tiles that run at a time. */
function massFloats(
  { facts: { threads }, shape: { queryHeads } }: LanguageModel,
  length: number,
  masses: number,
): number {
  // Beside a block lie the highest scores that its probabilities are relative to.
  const strip = (length / TILE.rows + 2) * TILE.queries * (TILE.rows + 1);
  const tiles = Math.min(
    Math.ceil(8 * threads / queryHeads),
    Math.ceil(length / TILE.queries),
  );
  return threads * strip + tiles * queryHeads * masses * length;
}

/**
 * Bytes of activations and observations while a prompt is read and until its last configuration has its fork.
 *
 * @param least what the prefill can do with when that is all there is: a GPU then holds no activations of the whole prompt
 */
export function workBytes(
  model: LanguageModel,
  length: number,
  observation: MergedObservation,
  least = false,
): number {
  const { layers, queryHeads, kvHeads, headDim } = model.shape;
  const { hidden, intermediate, vocab } = model.native.config;
  const { kind } = model.device;
  const width = queryHeads * headDim;
  const masses = observation.columnMasses.length;
  const tokens = Math.min(length, CHUNKS[kind].tokens);
  const queries = Math.min(length, CHUNKS[kind].queries);
  const whole = length * (hidden + width);
  // In pieces: not less for a prompt that is shorter than a piece.
  const kept = least && kind === "cuda"
    ? Math.min(
      whole,
      tokens * hidden + queries * width +
        Math.max(64, observation.windowQueries) * width,
    )
    : whole;
  const floats = kept + queries * width +
    (kind === "cpu" ? length : 0) * headDim +
    tokens *
      (width + 2 * kvHeads * headDim + 2 * hidden + 3 * intermediate) +
    2 * vocab +
    layers * queryHeads * observation.windowQueries * headDim +
    (layers + 1) * masses * queryHeads * length +
    (kind === "cpu" && masses > 0 ? massFloats(model, length, masses) : 0) +
    // Scores of one layer, in a few forms.
    8 * queryHeads * length;
  return 4 * floats;
}
