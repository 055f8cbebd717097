/** Rows that train the bundled model: each answer must follow from the text before it. */
import { assert, assertEquals } from "@std/assert";
import { PieceCodec, type TokenizerJson } from "../../models/train/codec.ts";
import { trainingRow } from "../../models/train/generate.ts";
import { buildTokenizer } from "../../models/train/tokenizer.ts";
import { RULER_TASKS } from "../../tasks/mod.ts";
import { oracleOf } from "./_oracles.ts";

const codec = new PieceCodec(buildTokenizer() as unknown as TokenizerJson);
const NAMES = ["needle", ...RULER_TASKS];
const [PADDING, TEXT, ENTRY, BOS, EOS] = [0, 1, 4, 1, 2];

interface Asked {
  prompt: string;
  answer: string;
  entries: string[];
}

/** A row with its questions, read back from ids and classes. */
function readRow(length: number, index: number, focus = 0) {
  const ids = new Uint16Array(length);
  const kinds = new Uint8Array(length);
  const task = trainingRow(codec, { seed: 5, index, ids, kinds, focus });
  const asked: Asked[] = [];
  for (let at = 0; at < length; at++) {
    if ((kinds[at] as number) <= TEXT) continue;
    const end = ids.indexOf(EOS, at);
    const answer = ids.slice(at, end);
    const starts = [...answer.keys()].filter((i) => kinds[at + i] === ENTRY);
    asked.push({
      prompt: codec.decode([...ids.slice(1, at)]),
      answer: codec.decode([...answer]),
      entries: starts.map((from, i) =>
        codec.decode([...answer.slice(from, starts[i + 1])])
      ),
    });
    at = end;
  }
  return { name: NAMES[task] as string, ids, kinds, asked };
}

for (const length of [256, 1280]) {
  Deno.test(`every answer of a row of ${length} tokens follows from the text before it`, () => {
    const seen = new Map<string, number>();
    for (let index = 0; index < 250; index++) {
      const { name, ids, kinds, asked } = readRow(length, index);
      assertEquals(ids[0], BOS);
      const used = kinds.indexOf(PADDING);
      if (used >= 0) {
        assert(kinds.slice(used).every((kind) => kind === PADDING));
        assertEquals(ids[used - 1], EOS);
      }
      assert(asked.length > 0);
      seen.set(name, (seen.get(name) ?? 0) + asked.length);
      if (!/^niah|^vt/.test(name)) continue;
      for (const { prompt, answer } of asked) {
        // The last line is the answer prefix.
        const question = prompt.slice(0, prompt.lastIndexOf("\n"));
        const found = oracleOf(name)(question);
        assert(found.length > 0, question);
        const said = name === "niah_multiquery"
          ? answer.split(", ").map((part) => part.replace(/^.* holds /, ""))
          : answer.trim().split(/, | /);
        assertEquals(said, found);
      }
    }
    for (const name of ["niah_multivalue", "niah_multikey_3", "vt"]) {
      assert((seen.get(name) ?? 0) > 10, `${name}: ${seen.get(name)}`);
    }
  });
}

Deno.test("the entries of a list are marked where they begin, those of other answers are not", () => {
  let lists = 0;
  for (let index = 0; index < 200; index++) {
    const { name, asked } = readRow(512, index);
    for (const { answer, entries } of asked) {
      if (name !== "vt" && name !== "niah_multivalue") {
        assertEquals(entries, []);
      } else if (entries.length > 1) {
        lists++;
        assertEquals(entries.join(""), answer);
        assert(entries.every((entry) => /^ [\w-]+,?$/.test(entry)));
      }
    }
  }
  assert(lists > 20, String(lists));
});

Deno.test("rows of a focus are haystacks of needles with many questions, each asked once", () => {
  const seen = new Map<string, number>();
  for (let index = 0; index < 40; index++) {
    const { name, ids, asked } = readRow(4736, index, 1);
    assert(/^niah_multikey_[23]$/.test(name), name);
    assert(asked.length > 4, `${name}: ${asked.length} questions`);
    assert(ids.filter((id) => id !== 0).length > 0.9 * 4736);
    const questions = asked.map(({ prompt, answer }) => {
      const question = prompt.slice(0, prompt.lastIndexOf("\n"));
      assertEquals([answer.trim()], oracleOf(name)(question));
      return question.slice(question.lastIndexOf("\n"));
    });
    assertEquals(new Set(questions).size, asked.length);
    seen.set(name, (seen.get(name) ?? 0) + asked.length);
  }
  assertEquals(seen.size, 2);
  // Numbers are short: four times as many questions as the other rows may have.
  assert((seen.get("niah_multikey_2") as number) > 20 * 25);
});

Deno.test("a focus is a share of the rows: the others are the ones of the other tasks", () => {
  const names = new Set<string>();
  let focused = 0;
  for (let index = 0; index < 200; index++) {
    const { name, asked } = readRow(1280, index, 0.5);
    names.add(name);
    if (/^niah_multikey_[23]$/.test(name) && asked.length > 2) focused++;
  }
  assert(focused > 50 && focused < 150, String(focused));
  for (const name of ["vt", "needle", "niah_multivalue"]) {
    assert(names.has(name), name);
  }
});
