/**
 * Wording of the RULER tasks: our own by default, or a user's.
 *
 * @module
 */
import { z } from "zod";
import { NOISE } from "../text/haystack.ts";

/** Wording of one task. Slots are written `{name}`. */
export interface TaskWording {
  /** Context and question; slots differ by task and always include `{context}`. */
  template: string;
  /** How the answer begins. */
  "answer_prefix": string;
  /** Template for a question with exactly one answer; `template` where missing. */
  "template_one"?: string | undefined;
  /** Answer prefix for a question with exactly one answer. */
  "answer_prefix_one"?: string | undefined;
  /** New tokens at most. */
  "tokens_to_generate"?: number | undefined;
}

/** A user's wording. */
export interface Wording {
  /** Tasks by name; `niah` stands for all niah tasks without an entry of their own, `qa` for both qa tasks. */
  tasks?: { [task: string]: TaskWording } | undefined;
  /** Paragraph of the noise haystack. */
  noise?: string | undefined;
  /** Form of a needle: slots `{type}`, `{key}`, `{value}`. */
  needle?: string | undefined;
}

const template = z.string().min(1).refine(
  (s) => s.includes("{context}"),
  "needs the slot {context}",
);

/** Schema of {@linkcode Wording}. */
export const WORDING_SCHEMA = z.strictObject({
  tasks: z.record(
    z.string(),
    z.strictObject({
      template,
      "answer_prefix": z.string(),
      "template_one": template.optional(),
      "answer_prefix_one": z.string().optional(),
      "tokens_to_generate": z.int().min(1).optional(),
    }),
  ).default({}),
  noise: z.string().min(1).optional(),
  needle: z.string().min(1).refine(
    (s) => s.includes("{key}") && s.includes("{value}"),
    "needs the slots {key} and {value}",
  ).optional(),
}) satisfies z.ZodType<Wording, Wording>;

/** Our own form of a needle. */
export const NEEDLE = "In the ledger of {type}, {key} holds {value}.";

/** Our own wording. `{type}` is a plural, `{kind}` its singular. */
export const DEFAULT_WORDING: { [task: string]: TaskWording } = {
  niah: {
    template:
      "This text hides entries of a ledger of {type}.\n{context}\nWhat are the {type} of {query}?\n",
    "template_one":
      "This text hides entries of a ledger of {type}.\n{context}\nWhat is the {kind} of {query}?\n",
    "answer_prefix": "In the ledger of {type}, {query} holds",
  },
  "niah_multiquery": {
    template:
      "This text hides entries of a ledger of {type}.\n{context}\nWhat are the {type} of {query}?\n",
    "answer_prefix": "In the ledger of {type},",
  },
  vt: {
    template:
      "Follow the assignments in this text.\n{context}\nWhich variables hold the value {query}?\n",
    "answer_prefix": "The {num_v} variables that hold {query} are",
  },
  cwe: {
    template:
      "Here is a numbered list of words. Ten of them come up more often than the others.\n{context}\nWhich ten words are the most common?\n",
    "answer_prefix": "The ten most common words are:",
  },
  fwe: {
    template:
      "Here is a coded text. Leave the dots out and count how often each coded word comes up.\n{context}\nWhich three coded words are the most frequent?\n",
    "answer_prefix": "The three most frequent coded words are:",
  },
  qa: {
    template:
      "Answer the question from the documents. Give only the answer.\n\n{context}\n\nQuestion: {query}\n",
    "answer_prefix": "Answer:",
  },
};

/** Wording with everything resolved. */
export interface ResolvedWording {
  /** Context and question. */
  template: string;
  /** Template for a question with exactly one answer. */
  templateOne: string;
  /** How the answer begins. */
  answerPrefix: string;
  /** How the answer to a question with exactly one answer begins. */
  answerPrefixOne: string;
  /** New tokens at most, where the wording says so. */
  tokensToGenerate: number | null;
  /** Noise paragraph. */
  noise: string;
  /** Needle form. */
  needle: string;
}

/** Resolves the wording of a task; `group` is the entry used where the task has none of its own. */
export function resolveWording(
  task: string,
  group: string,
  user: Wording | undefined,
): ResolvedWording {
  const own = user?.tasks?.[task] ?? user?.tasks?.[group] ??
    DEFAULT_WORDING[task] ?? DEFAULT_WORDING[group];
  if (own === undefined) {
    throw new TypeError(
      `Cannot word a task as its name must be known: task is "${task}"`,
    );
  }
  const prefix = own["answer_prefix"];
  return {
    template: own.template,
    templateOne: own["template_one"] ?? own.template,
    answerPrefix: prefix,
    answerPrefixOne: own["answer_prefix_one"] ?? prefix,
    tokensToGenerate: own["tokens_to_generate"] ?? null,
    noise: user?.noise ?? NOISE,
    needle: user?.needle ?? NEEDLE,
  };
}
