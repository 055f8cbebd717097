/**
 * Questions over documents: one gold document or several among others.
 *
 * @module
 */
import { z } from "zod";
import { Random } from "../random.ts";
import type { TextCodec } from "../types.ts";
import { ADJECTIVES, NOUNS, VERBS } from "../text/words.ts";
import { type DataFile, jsonOf } from "../_files.ts";
import { fillRest, fillSlots, fitUnits } from "../_sizing.ts";
import type { Draft } from "./_parts.ts";
import type { ResolvedWording } from "./_wording.ts";

/** New tokens of the official benchmark. */
export const QA_NEW_TOKENS = 32;

/** A question about documents. */
export interface QaQuestion {
  /** The question. */
  question: string;
  /** Accepted answers. */
  answers: string[];
  /** Documents that hold the answer. */
  gold: number[];
  /** Documents taken before any others to fill up. */
  more: number[];
}

/** Documents and the questions about them. */
export interface QaSource {
  /** Texts. */
  documents: string[];
  /** Questions. */
  questions: QaQuestion[];
}

const SQUAD_SCHEMA = z.object({
  data: z.array(z.object({
    paragraphs: z.array(z.object({
      context: z.string(),
      qas: z.array(z.object({
        question: z.string(),
        is_impossible: z.boolean().optional(),
        answers: z.array(z.object({ text: z.string() })),
      })),
    })),
  })),
});

/**
 * Reads SQuAD 2.0: documents are the distinct paragraphs in sorted order, questions those that have an answer.
 *
 * @throws {SyntaxError} If the file is not JSON or not SQuAD; the message names it.
 */
export function parseSquad(file: DataFile): QaSource {
  const { data } = jsonOf(file, SQUAD_SCHEMA);
  const documents = [
    ...new Set(data.flatMap((a) => a.paragraphs.map((p) => p.context))),
  ].sort();
  const index = new Map(documents.map((d, i) => [d, i]));
  const at = (context: string): number => index.get(context) as number;
  const questions: QaQuestion[] = [];
  for (const article of data) {
    const all = article.paragraphs.map((p) => at(p.context));
    for (const paragraph of article.paragraphs) {
      const gold = at(paragraph.context);
      for (const qa of paragraph.qas) {
        const answers = [...new Set(qa.answers.map((a) => a.text))];
        if (qa.is_impossible === true || answers.length === 0) continue;
        questions.push({
          question: qa.question,
          answers,
          gold: [gold],
          more: all.filter((i) => i !== gold),
        });
      }
    }
  }
  return { documents, questions: needQuestions(file, questions) };
}

/** A source must ask something. */
function needQuestions(
  { path }: DataFile,
  questions: QaQuestion[],
): QaQuestion[] {
  if (questions.length > 0) return questions;
  throw new SyntaxError(
    `Cannot read data as it must hold at least one question with an answer: ${path}`,
  );
}

const HOTPOT_SCHEMA = z.array(z.object({
  question: z.string(),
  answer: z.string(),
  context: z.array(z.tuple([z.string(), z.array(z.string())])),
}));

/**
 * Reads HotpotQA (distractor form): a document is its title, a newline and its sentences; the given ten are gold.
 *
 * @throws {SyntaxError} If the file is not JSON or not HotpotQA; the message names it.
 */
export function parseHotpot(file: DataFile): QaSource {
  const records = jsonOf(file, HOTPOT_SCHEMA);
  const textOf = ([title, sentences]: [string, string[]]): string =>
    `${title}\n${sentences.join("")}`;
  const documents = [
    ...new Set(records.flatMap((r) => r.context.map(textOf))),
  ].sort();
  const index = new Map(documents.map((d, i) => [d, i]));
  return {
    documents,
    questions: needQuestions(
      file,
      records.map((r) => ({
        question: r.question,
        answers: [r.answer],
        gold: [...new Set(r.context.map((c) => index.get(textOf(c))!))],
        more: [],
      })),
    ),
  };
}

const STARTS = [
  "Bel",
  "Cor",
  "Dan",
  "Fel",
  "Gar",
  "Hol",
  "Jar",
  "Kel",
  "Lor",
  "Mar",
  "Nor",
  "Pel",
  "Ros",
  "Sel",
  "Tor",
  "Vel",
];
const MIDDLES = ["a", "e", "i", "o", "u", "an", "el", "in", "or", "un"];
const PERSON_ENDS = ["da", "la", "mo", "na", "ric", "ro", "sa", "vin"];
const TOWN_ENDS = [
  "bridge",
  "field",
  "ford",
  "gate",
  "mill",
  "stead",
  "ton",
  "wick",
];

/** An invented name. */
function invent(random: Random, ends: readonly string[]): string {
  return random.choice(STARTS) + random.choice(MIDDLES) + random.choice(ends);
}

/** The invented life of a person. */
interface Life {
  name: string;
  town: string;
  trade: string;
  thing: string;
  teacher: string;
}

/** Writes invented people, none of whom shares a name, a town or a thing with another. */
class People {
  #random: Random;
  #used = new Set<string>();

  constructor(random: Random) {
    this.#random = random;
  }

  #fresh(make: () => string): string {
    for (;;) {
      const value = make();
      if (!this.#used.has(value)) {
        this.#used.add(value);
        return value;
      }
    }
  }

  /** A new person. */
  next(): Life {
    const r = this.#random;
    const name = (): string =>
      this.#fresh(() => `${invent(r, PERSON_ENDS)} ${invent(r, PERSON_ENDS)}`);
    return {
      name: name(),
      town: this.#fresh(() => invent(r, TOWN_ENDS)),
      trade: `to ${r.choice(VERBS)} ${r.choice(ADJECTIVES)} ${
        r.choice(NOUNS)
      }s`,
      thing: this.#fresh(() => `${r.choice(ADJECTIVES)} ${r.choice(NOUNS)}`),
      teacher: name(),
    };
  }

  /** The paragraph about a person. */
  tell({ name, town, trade, thing, teacher }: Life): string {
    return `${name} was born in ${town} and learned from ${teacher} how ${trade}. In later years ${name} kept a ${thing} near the ${
      this.#random.choice(NOUNS)
    }.`;
  }
}

/** Where the documents of an example come from. */
interface Supply {
  question: string;
  answers: string[];
  /** Documents that hold the answer. */
  gold: string[];
  /** Other document number `i`. */
  other(i: number): string;
  /** Short documents, longest first, one of which may fill what whole documents leave. */
  fillers: readonly string[];
}

/** A question about invented people; with two hops it takes two documents to answer. */
function invented(random: Random, hops: 1 | 2): Supply {
  const people = new People(random);
  const asked = people.next();
  const extra = people.next();
  const fillers = [
    `${extra.name} was born in ${extra.town} and learned from ${extra.teacher} how ${extra.trade}.`,
    `${extra.name} was born in ${extra.town}.`,
  ];
  const other = (docs: string[]) => (i: number): string => {
    while (docs.length <= i) docs.push(people.tell(people.next()));
    return docs[i] as string;
  };
  if (hops === 2) {
    const teacher = { ...people.next(), name: asked.teacher };
    const [question, answer] = random.choice([
      [`Where was the teacher of ${asked.name} born?`, teacher.town],
      [`What did the teacher of ${asked.name} keep?`, teacher.thing],
    ]) as [string, string];
    return {
      question,
      answers: [answer],
      gold: [people.tell(asked), people.tell(teacher)],
      other: other([]),
      fillers,
    };
  }
  const [question, answer] = random.choice([
    [`Where was ${asked.name} born?`, asked.town],
    [`Who taught ${asked.name}?`, asked.teacher],
    [`What did ${asked.name} keep?`, asked.thing],
  ]) as [string, string];
  return {
    question,
    answers: [answer],
    gold: [people.tell(asked)],
    other: other([]),
    fillers,
  };
}

/** The documents of a user's question. */
function supplied(random: Random, source: QaSource, index: number): Supply {
  const asked = source.questions[index % source.questions.length]!;
  const first = new Set([...asked.gold, ...asked.more]);
  const rest = random.shuffle(
    source.documents.map((_, i) => i).filter((i) => !first.has(i)),
  );
  const others = [...random.shuffle(asked.more), ...rest];
  const documentOf = (i: number): string => source.documents[i] as string;
  return {
    question: asked.question,
    answers: asked.answers,
    gold: asked.gold.map(documentOf),
    // A collection that is too small is repeated.
    other: (i) =>
      documentOf(
        others.length > 0
          ? others[i % others.length] as number
          : asked.gold[i % asked.gold.length] as number,
      ),
    // The user's documents stay whole.
    fillers: [],
  };
}

/**
 * Makes one question with its documents.
 *
 * @throws {RangeError} If the gold documents alone have more tokens than the limit.
 */
export function makeQa(
  random: Random,
  codec: TextCodec,
  { wording, limit, source, hops, index }: {
    wording: ResolvedWording;
    limit: number;
    /** Documents and questions of a user; invented ones where null. */
    source: QaSource | null;
    /** Gold documents of invented questions. */
    hops: 1 | 2;
    /** Question number. */
    index: number;
  },
): Draft {
  const order = random.next();
  const supply = source === null
    ? invented(random, hops)
    : supplied(random, source, index);
  const contextOf = (count: number, filler?: string): string => {
    const documents = supply.gold.slice();
    for (let i = 0; documents.length < count; i++) {
      documents.push(supply.other(i));
    }
    if (filler !== undefined) documents.push(filler);
    return new Random(order, count).shuffle(documents)
      .map((text, i) => `Document ${i + 1}:\n${text}`).join("\n\n");
  };
  const slots = { query: supply.question };
  const promptOf = (count: number, filler?: string): string =>
    fillSlots(wording.template, {
      ...slots,
      context: contextOf(count, filler),
    });
  const sizes: number[] = [];
  const answerPrefix = fillSlots(wording.answerPrefix, slots);
  const base = codec.encode(promptOf(supply.gold.length)).length +
    codec.encode(answerPrefix).length;
  const estimate = (count: number): number => {
    const others = count - supply.gold.length;
    while (sizes.length < others) {
      const i = sizes.length;
      sizes.push(
        (sizes[i - 1] ?? 0) +
          codec.encode(
            `\n\nDocument ${i + supply.gold.length + 1}:\n${supply.other(i)}`,
          ).length,
      );
    }
    return base + (others > 0 ? sizes[others - 1] as number : 0);
  };
  let max = supply.gold.length;
  while (estimate(max) <= limit) max++;
  const whole = fitUnits(codec, {
    limit,
    min: supply.gold.length,
    max: max + 2,
    estimate,
    build: (count) => promptOf(count) + answerPrefix,
  });
  const fit = fillRest(codec, whole, {
    limit,
    parts: supply.fillers,
    build: (filler) => promptOf(whole.count, filler) + answerPrefix,
  });
  return {
    prompt: fit.text.slice(0, fit.text.length - answerPrefix.length),
    question: "",
    answerPrefix,
    answers: supply.answers,
    target: ` ${supply.answers[0]}`,
    meta: { promptTokens: fit.tokens, units: fit.count },
  };
}
