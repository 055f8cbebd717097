/**
 * Writes training rows or evaluation prompts for the bundled model, with the very generators that evaluate it.
 *
 * `rows --tokenizer FILE --row T --seed S` writes rows to standard output without end, until the reader closes it. A row
 * is: uint16 task number; T uint16 token ids; T uint8 classes (0 padding, 1 text, 2 answer, 3 answer of a counting task,
 * 4 first token of an entry of a list, which decides what comes next). A row holds one context, then questions about it
 * with their answers, each answer closed by EOS; the first question stands as in an evaluation. `--focus SHARE` makes that
 * share of the rows full haystacks of needles with many questions.
 *
 * `prompts --tokenizer FILE --task NAME --lengths 512,1024 --count N --seed S` writes one JSON object per line: `task,
 * length, ids` (with BOS), `answers, maxNewTokens, part` (whether one answer is enough).
 *
 * @module
 */
import { parseArgs } from "node:util";
import { Random } from "../../tasks/random.ts";
import { needleDepths, needleTask } from "../../tasks/needle.ts";
import { makeCwe } from "../../tasks/ruler/cwe.ts";
import { makeFwe } from "../../tasks/ruler/fwe.ts";
import { RULER_TASKS, rulerTask } from "../../tasks/ruler/mod.ts";
import {
  makeNiah,
  NIAH_TASKS,
  type NiahConfig,
} from "../../tasks/ruler/niah.ts";
import { makeQa } from "../../tasks/ruler/qa.ts";
import { makeVt } from "../../tasks/ruler/vt.ts";
import { resolveWording } from "../../tasks/ruler/_wording.ts";
import type { ValueType } from "../../tasks/ruler/_parts.ts";
import { PieceCodec, type TokenizerJson } from "./codec.ts";

const BOS = 1;
const EOS = 2;
const TEXT = 1;
const ANSWER = 2;
const COUNTING = 3;
const ENTRY = 4;

/** Task numbers in rows. */
const NAMES: readonly string[] = ["needle", ...RULER_TASKS];

const WORDINGS = new Map(
  RULER_TASKS.map((name) => [
    name,
    resolveWording(name, name.replace(/_.*/, ""), undefined),
  ]),
);

function wordingOf(name: string) {
  const wording = WORDINGS.get(name);
  if (wording === undefined) throw new TypeError(`No wording: "${name}"`);
  return wording;
}

/** Text in pieces, each with its class; the entries of a list are marked where they begin. */
interface Piece {
  text: string;
  kind: number;
  list?: boolean;
}

/** A row before it is encoded. */
interface Row {
  task: string;
  pieces: Piece[];
}

/** Picks a key of a table of weights. */
function weighted<T extends string>(
  random: Random,
  table: { [key in T]: number },
): T {
  const entries = Object.entries(table) as [T, number][];
  let at = random.float() * entries.reduce((sum, [, w]) => sum + w, 0);
  for (const [key, weight] of entries) {
    at -= weight;
    if (at < 0) return key;
  }
  return (entries[0] as [T, number])[0];
}

/** A niah set-up: one of the eight tasks, or a mixture around them with more needles. */
function drawConfig(random: Random, row: number): NiahConfig {
  if (random.float() < (row > 2000 ? 0.5 : 0.3)) {
    const name = weighted(random, {
      "niah_single_1": 0.5,
      "niah_single_2": 0.7,
      "niah_single_3": 1,
      "niah_multikey_1": 1,
      "niah_multikey_2": 2,
      "niah_multikey_3": 3.5,
      "niah_multivalue": 3,
      "niah_multiquery": 1.5,
    });
    return NIAH_TASKS[name] as NiahConfig;
  }
  const haystack = weighted(random, { essay: 5, needle: 4, noise: 1 });
  const keyType: ValueType = random.float() < 0.25 ? "uuids" : "words";
  const valueType: ValueType = keyType === "uuids" && random.float() < 0.7
    ? "uuids"
    : weighted(random, { numbers: 7, uuids: 2, words: 1 });
  const most = Math.max(1, Math.min(16, Math.floor(row / 80)));
  const isList = keyType === "words" && valueType !== "uuids" &&
    random.float() < 0.45;
  // Lists stand closer: which entry follows which is learnt from many of them in a row.
  const entries = Math.min(16, Math.floor(row / 40));
  const values = isList ? random.between(2, Math.min(8, entries)) : 1;
  return {
    haystack,
    keyType,
    valueType,
    keys: isList
      ? random.between(1, Math.max(1, Math.floor(entries / values)))
      : random.between(1, most),
    values,
    queries: values === 1 && random.float() < 0.2
      ? random.between(2, Math.min(4, Math.max(2, most)))
      : 1,
  };
}

/** The task that a set-up is closest to, for the training log. */
function nearest(
  { haystack, keyType, valueType, keys, values, queries }: NiahConfig,
): string {
  if (values > 1) return "niah_multivalue";
  if (queries > 1) return "niah_multiquery";
  if (keyType === "uuids") return "niah_multikey_3";
  if (haystack === "needle") return "niah_multikey_2";
  if (keys > 1) return "niah_multikey_1";
  if (valueType === "uuids") return "niah_single_3";
  return haystack === "noise" ? "niah_single_1" : "niah_single_2";
}

/** Tokens for the context and its first question: often all there is, else anything down to a third. */
function drawLimit(random: Random, room: number, row: number): number {
  if (random.float() < 0.5) return room;
  return random.between(
    Math.min(room, Math.floor(row * (row > 2000 ? 0.3 : 0.45))),
    room,
  );
}

/** As long in tokens as any other, nearly: how a tokenizer cuts them is its own. */
const UUID = " 4b0e61d7-2a9c-4f35-8ed1-7c58a3f09b26";

/** Tokens for the context of a list: also next to no haystack. */
function drawDense(random: Random, room: number): number {
  return random.float() < 0.5 ? room : random.between(room >> 2, room);
}

function niahRow(random: Random, codec: PieceCodec, row: number): Row {
  const config = drawConfig(random, row);
  const { keyType, valueType, values, queries } = config;
  const uuid = codec.encode(UUID).length;
  const answer = queries * values * (valueType === "uuids" ? uuid + 1 : 5) + 1;
  const ask = answer + 20 + queries * 10 +
    (keyType === "uuids" ? 2 * uuid : 0);
  const extras = Math.min(
    random.below(24),
    Math.floor((row > 1000 ? 0.25 : 0.5) * row / ask),
  );
  const room = row - 2 - answer - extras * ask;
  const name = nearest(config);
  const niah = makeNiah(random, codec, {
    config,
    wording: wordingOf(queries > 1 ? "niah_multiquery" : "niah_multikey_1"),
    limit: values > 1 ? drawDense(random, room) : drawLimit(random, room, row),
    sentences: null,
  });
  const { prompt, answerPrefix, target, meta } = niah.first;
  const list = values > 1;
  const pieces: Piece[] = [
    { text: prompt + answerPrefix, kind: TEXT },
    { text: target, kind: ANSWER, list },
  ];
  const asked = new Set(meta.query as string[]);
  const open = random.shuffle(niah.keys.filter((key) => !asked.has(key)));
  while (open.length >= queries && pieces.length < 48) {
    const next = niah.ask(open.splice(0, queries));
    pieces.push(
      { text: next.question + next.answerPrefix, kind: TEXT },
      { text: next.target, kind: ANSWER, list },
    );
  }
  return { task: name, pieces };
}

/** How many of the keys have a word of this one. */
function sharing(keys: readonly string[]): Map<string, number> {
  const uses = new Map<string, number>();
  for (const word of keys.flatMap((key) => key.split("-"))) {
    uses.set(word, (uses.get(word) ?? 0) + 1);
  }
  return new Map(keys.map((key) => [
    key,
    key.split("-").reduce((sum, word) => sum + (uses.get(word) ?? 0) - 1, 0),
  ]));
}

/** Replaces each text that is a key of the table wherever a pattern finds it. */
function replaceAll(
  pieces: Piece[],
  pattern: RegExp,
  table: Map<string, string>,
): void {
  for (const piece of pieces) {
    piece.text = piece.text.replace(pattern, (old) => table.get(old) ?? old);
  }
}

const UUIDS = /[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/g;
const PAIRS = /[a-z]+-[a-z]+/g;

/**
 * Gives most UUIDs a run of digits that another one of the row has at the same place: what precedes a digit then tells
 * which one follows only to those who look back further than the run.
 */
function twinUuids(random: Random, pieces: Piece[]): void {
  const all = [
    ...new Set(pieces.flatMap(({ text }) => text.match(UUIDS) ?? [])),
  ];
  const used = new Set(all);
  const table = new Map<string, string>();
  for (const old of all) {
    if (random.float() < 0.2) continue;
    const other = random.choice(all);
    const length = random.between(3, 14);
    const at = random.below(old.length - length);
    const twin = old.slice(0, at) + other.slice(at, at + length) +
      old.slice(at + length);
    if (used.has(twin)) continue;
    used.add(twin);
    table.set(old, twin);
  }
  replaceAll(pieces, UUIDS, table);
}

/** Gives keys of two words others of few words, so that each word is in several keys and only both together tell one. */
function twinPairs(
  random: Random,
  pieces: Piece[],
  keys: readonly string[],
): void {
  const few = Math.ceil(Math.sqrt(keys.length * (1.5 + 4 * random.float())));
  const words = keys.map((key) => key.split("-") as [string, string]);
  const first = random.shuffle([...new Set(words.map(([a]) => a))]);
  const second = random.shuffle([...new Set(words.map(([, b]) => b))]);
  first.length = Math.min(first.length, few);
  second.length = Math.min(second.length, few);
  const pairs = random.shuffle(
    first.flatMap((a) => second.map((b) => `${a}-${b}`)),
  );
  if (pairs.length < keys.length) return;
  replaceAll(
    pieces,
    PAIRS,
    new Map(keys.map((key, i) => [key, pairs[i] as string])),
  );
}

/**
 * A haystack of nothing but needles and as many questions as fit behind it: each is one more search of the same context.
 * Half of the rows ask first for keys whose words other keys have too; in half of them many needles are much alike.
 */
function lookupRow(random: Random, codec: PieceCodec, row: number): Row {
  const task = random.float() < 0.45 ? "niah_multikey_2" : "niah_multikey_3";
  const share = random.float() < 0.5 ? 0.84 : 0.42 + 0.4 * random.float();
  const niah = makeNiah(random, codec, {
    config: NIAH_TASKS[task] as NiahConfig,
    wording: wordingOf(task),
    limit: Math.floor(share * row),
    sentences: null,
  });
  const { prompt, answerPrefix, target, meta } = niah.first;
  const pieces: Piece[] = [
    { text: prompt + answerPrefix, kind: TEXT },
    { text: target, kind: ANSWER },
  ];
  const asked = new Set(meta.query as string[]);
  const open = random.shuffle(niah.keys.filter((key) => !asked.has(key)));
  if (task === "niah_multikey_2" && random.float() < 0.5) {
    const shared = sharing(niah.keys);
    open.sort((a, b) => (shared.get(b) ?? 0) - (shared.get(a) ?? 0));
  }
  // No question has fewer tokens than this; those that no longer fit are left out.
  const most = Math.floor((1 - share) * row / 16);
  for (const key of open.slice(0, most)) {
    const next = niah.ask([key]);
    pieces.push(
      { text: next.question + next.answerPrefix, kind: TEXT },
      { text: next.target, kind: ANSWER },
    );
  }
  if (random.float() < 0.5) {
    if (task === "niah_multikey_2") twinPairs(random, pieces, niah.keys);
    else twinUuids(random, pieces);
  }
  return { task, pieces };
}

/** Chains of variables, each asked for. */
function vtRow(random: Random, codec: PieceCodec, row: number): Row {
  const chains = random.float() < 0.5 ? 1 : random.between(2, 4);
  const hops = random.between(1, 6);
  const answer = 6 * (hops + 1) + 1;
  const draft = makeVt(random, codec, {
    wording: wordingOf("vt"),
    limit: drawDense(random, row - 2 - answer - (chains - 1) * (answer + 30)),
    chains,
    hops,
    shot: row > 300 && random.float() < 0.9,
  });
  return {
    task: "vt",
    pieces: [
      { text: draft.prompt + draft.answerPrefix, kind: TEXT },
      { text: draft.target, kind: ANSWER, list: true },
      ...draft.others.flatMap((other): Piece[] => [
        { text: other.question + other.answerPrefix, kind: TEXT },
        { text: other.target, kind: ANSWER, list: true },
      ]),
    ],
  };
}

/** A grid without limits on its length: the training rows' own. */
const GRIDS = new Map<number, ReturnType<typeof needleTask>>();

function drawRow(
  random: Random,
  codec: PieceCodec,
  row: number,
  focus: number,
): Row {
  if (focus > 0 && random.float() < focus) {
    return lookupRow(random, codec, row);
  }
  const kind = weighted(random, {
    niah: 70,
    vt: 16,
    needle: 5,
    qa: 6,
    cwe: 1.5,
    fwe: 1.5,
  });
  const one = (
    task: string,
    draft: { prompt: string; answerPrefix: string; target: string },
    answer = ANSWER,
  ): Row => ({
    task,
    pieces: [
      { text: draft.prompt + draft.answerPrefix, kind: TEXT },
      { text: draft.target, kind: answer },
    ],
  });
  switch (kind) {
    case "niah":
      return niahRow(random, codec, row);
    case "vt":
      return vtRow(random, codec, row);
    case "needle": {
      const length = drawLimit(random, row - 3, row);
      let grid = GRIDS.get(length);
      if (grid === undefined) {
        grid = needleTask({ lengths: [length], maxNewTokens: 6 });
        if (GRIDS.size < 5000) GRIDS.set(length, grid);
      }
      const depth = random.below(101);
      return one(
        "needle",
        grid.example(codec, { length, depth, index: random.next() }),
      );
    }
    case "qa": {
      const hops = random.float() < 0.5 ? 1 : 2;
      const task = `qa_${hops}`;
      return one(
        task,
        makeQa(random, codec, {
          wording: wordingOf(task),
          limit: drawLimit(random, row - 20, row),
          source: null,
          hops,
          index: 0,
        }),
      );
    }
    case "cwe": {
      const limit = drawLimit(random, row - 80, row);
      return one(
        "cwe",
        makeCwe(random, codec, {
          wording: wordingOf("cwe"),
          limit,
          length: row > 4000 ? 4096 : limit + 120,
        }),
        COUNTING,
      );
    }
    case "fwe":
      return one(
        "fwe",
        makeFwe(random, codec, {
          wording: wordingOf("fwe"),
          limit: drawLimit(random, row - 30, row),
          alpha: 2,
        }),
        COUNTING,
      );
  }
}

/** Encodes a row; questions that no longer fit are left out. Null if not even the first fits. */
function encodeRow(
  codec: PieceCodec,
  { pieces }: Row,
  ids: Uint16Array,
  kinds: Uint8Array,
): boolean {
  ids[0] = BOS;
  kinds[0] = TEXT;
  let at = 1;
  for (let p = 0; p + 1 < pieces.length; p += 2) {
    const { text, kind, list } = pieces[p + 1] as Piece;
    const context = codec.encode((pieces[p] as Piece).text);
    const answer = codec.encode(text);
    if (at + context.length + answer.length + 1 > ids.length) return p > 0;
    ids.set(context, at);
    kinds.fill(TEXT, at, at + context.length);
    at += context.length;
    ids.set(answer, at);
    ids[at + answer.length] = EOS;
    kinds.fill(kind, at, at + answer.length + 1);
    if (list) {
      answer.forEach((id, i) => {
        const begin = codec.decode([id]);
        if (begin.startsWith(" ")) kinds[at + i] = ENTRY;
        // A space of its own tells nothing: what follows it does.
        if (begin === " " && i + 1 < answer.length) kinds[at + i + 1] = ENTRY;
      });
    }
    at += answer.length + 1;
  }
  return true;
}

/** Row number `index` of a seed; its task number, ids and classes are written to the buffers. */
export function trainingRow(
  codec: PieceCodec,
  { seed, index, ids, kinds, focus = 0 }: {
    seed: number;
    index: number;
    ids: Uint16Array;
    kinds: Uint8Array;
    focus?: number;
  },
): number {
  const random = new Random(seed, "row", ids.length, index);
  for (;;) {
    ids.fill(0);
    kinds.fill(0);
    try {
      const row = drawRow(random, codec, ids.length, focus);
      if (encodeRow(codec, row, ids, kinds)) return NAMES.indexOf(row.task);
    } catch (error) {
      // Drawn too large for the row: draw again.
      if (!(error instanceof RangeError)) throw error;
    }
  }
}

function writeAll(bytes: Uint8Array): boolean {
  try {
    for (let at = 0; at < bytes.length;) {
      at += Deno.stdout.writeSync(bytes.subarray(at));
    }
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return false;
    throw error;
  }
}

function writeRows(
  codec: PieceCodec,
  { row, seed, focus }: { row: number; seed: number; focus: number },
): void {
  const rows = 16;
  const size = 2 + 3 * row;
  const bytes = new Uint8Array(rows * size);
  const ids = new Uint16Array(row);
  const kinds = new Uint8Array(row);
  for (let index = 0;; index++) {
    const slot = index % rows;
    const task = trainingRow(codec, { seed, index, ids, kinds, focus });
    bytes.set(new Uint8Array(new Uint16Array([task]).buffer), slot * size);
    bytes.set(new Uint8Array(ids.buffer), slot * size + 2);
    bytes.set(kinds, slot * size + 2 + 2 * row);
    if (slot === rows - 1 && !writeAll(bytes)) return;
  }
}

function writePrompts(
  codec: PieceCodec,
  { task, lengths, count, seed }: {
    task: string;
    lengths: number[];
    count: number;
    seed: number;
  },
): void {
  const utf8 = new TextEncoder();
  for (const length of lengths) {
    const made = task === "needle"
      ? needleTask({
        lengths: [length],
        depths: needleDepths(count, "linear"),
        seed,
      })
      : rulerTask(task, { length, count, seed });
    for (const example of made.examples(codec)) {
      const line = JSON.stringify({
        task,
        length,
        ids: [BOS, ...codec.encode(example.prompt + example.answerPrefix)],
        answers: example.answers,
        maxNewTokens: example.maxNewTokens,
        part: made.metric === "string_match_part",
      });
      if (!writeAll(utf8.encode(line + "\n"))) return;
    }
  }
}

if (import.meta.main) {
  const { positionals, values } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      tokenizer: { type: "string" },
      row: { type: "string", default: "256" },
      seed: { type: "string", default: "0" },
      focus: { type: "string", default: "0" },
      task: { type: "string", default: "needle" },
      lengths: { type: "string", default: "512" },
      count: { type: "string", default: "16" },
    },
  });
  if (values.tokenizer === undefined) {
    throw new TypeError("Cannot encode as --tokenizer must name a file");
  }
  const codec = new PieceCodec(
    JSON.parse(Deno.readTextFileSync(values.tokenizer)) as TokenizerJson,
  );
  const seed = Number(values.seed);
  if (positionals[0] === "rows") {
    writeRows(codec, {
      row: Number(values.row),
      seed,
      focus: Number(values.focus),
    });
  } else if (positionals[0] === "prompts") {
    writePrompts(codec, {
      task: values.task,
      lengths: values.lengths.split(",").map(Number),
      count: Number(values.count),
      seed,
    });
  } else {
    throw new TypeError(
      `Cannot run as the first argument must be rows or prompts: it is "${
        positionals[0] ?? ""
      }"`,
    );
  }
}
