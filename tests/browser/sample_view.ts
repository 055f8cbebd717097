/**
 * A view as large as the page must be able to show: 4096 tokens, 24 layers, 8 KV heads, 6 configurations, the
 * last of which keeps every query head's own rows.
 *
 * @module
 */
import {
  codeProbability,
  type Snapshot,
  type View,
  type ViewConfiguration,
} from "../../eval/view/mod.ts";

/** Tokens of the prompt. */
export const TOKENS = 4096;
const LAYERS = 24, KV_HEADS = 8, QUERY_HEADS = 16, STEPS = 12, BLOCKS = 128;

/** Draws that look random and are always the same, in [0, 1). */
function draws(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

const WORDS = "river stone winter glass <b> & market letter seven golden"
  .split(" ");

/** Keeps a share of the tokens, the last ones and, in decode, the new ones. */
function snapshots(
  seed: number,
  share: number,
  heads: number,
): Snapshot[] {
  const full = seed === 0;
  const draw = draws(seed);
  const stride = Math.ceil((TOKENS + STEPS) / 8);
  const first = new Uint8Array(LAYERS * heads * stride);
  for (let head = 0; head < LAYERS * heads; head++) {
    const own = share * (1 + head % heads) / heads;
    for (let i = 0; i < TOKENS; i++) {
      if (!full && i < TOKENS - 32 && draw() >= own) continue;
      const at = head * stride + (i >> 3);
      first[at] = first[at]! | 1 << (i & 7);
    }
  }
  const all: Snapshot[] = [];
  let kept = first;
  for (let step = 0; step <= STEPS; step++) {
    if (step > 0) {
      kept = kept.slice();
      const i = TOKENS + step - 1;
      for (let head = 0; head < LAYERS * heads; head++) {
        const at = head * stride + (i >> 3);
        kept[at] = kept[at]! | 1 << (i & 7);
      }
    }
    all.push({
      generated: step,
      kept,
      bytes: new Uint32Array(LAYERS * heads).fill(4096 * (1 + step)),
      ownedBytes: LAYERS * heads * 4096 * (1 + step),
    });
  }
  return all;
}

/** Makes the view. */
export function sampleView(): View {
  const draw = draws(7);
  const word = () => WORDS[Math.floor(draw() * WORDS.length)]!;
  const tokens = Array.from(
    { length: TOKENS },
    (_, i) => i % 97 === 96 ? ".\n" : ` ${word()}`,
  );
  const maps = new Uint8Array(3 * QUERY_HEADS * BLOCKS * BLOCKS);
  for (let row = 0; row < maps.length / BLOCKS; row++) {
    for (let column = 0; column <= row % BLOCKS; column++) {
      maps[row * BLOCKS + column] = codeProbability(draw() ** 6);
    }
  }
  return {
    title: "Sample </script> view",
    model: {
      name: "sample",
      layers: LAYERS,
      queryHeads: QUERY_HEADS,
      kvHeads: KV_HEADS,
    },
    tokens,
    highlights: [[2000, 2016]],
    scoreWindow: 32,
    scores: Uint8Array.from(
      { length: LAYERS * KV_HEADS * TOKENS },
      () => codeProbability(draw() ** 8),
    ),
    configurations: Array.from({ length: 6 }, (_, i): ViewConfiguration => {
      const heads = i === 5 ? QUERY_HEADS : KV_HEADS;
      return {
        name: i === 0 ? "FullKV" : `Method ${i}`,
        method: i === 0 ? "fullkv" : `method${i}`,
        options: {},
        granularity: i === 5 ? "query_head" : "kv_head",
        heads,
        generated: Array.from({ length: STEPS }, () => ` ${word()}`),
        snapshots: snapshots(i, 0.04 * i, heads),
      };
    }),
    attention: {
      block: TOKENS / BLOCKS,
      blocks: BLOCKS,
      layers: [0, 12, 23],
      maps,
    },
  };
}
