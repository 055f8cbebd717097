/**
 * How much each query head of a model retrieves: what HeadKV's budgets are made of.
 *
 * A needle is hidden in a haystack and asked for; a head's score is the attention that the last prompt token, from which
 * the answer's first token comes, gives to the needle's tokens. HeadKV's authors score the decoded tokens that a head
 * copies; the attention itself needs no threshold and no correct answer.
 *
 * Paper: HeadKV, https://arxiv.org/abs/2410.19258, section 3
 *
 * @module
 */
import type { Method } from "../methods/types.ts";
import { needleTask } from "../tasks/mod.ts";
import { generate, type LanguageModel } from "./engine/mod.ts";
import { buildPrompt, promptModel } from "./protocol.ts";

/** Options of {@linkcode headScores}. */
export interface HeadScoreOptions {
  /** Prompt lengths, tokens. */
  lengths: readonly number[];
  /** Depths of the needle for each length, from 0 to 100 %. */
  depths: number;
  /** Seed of the examples. */
  seed: number;
  /** Called after every example. */
  onProgress?: (done: number, total: number) => void;
}

/** Scores of every head: `<layer>-<head>` to one number for each example. */
export type HeadScores = Record<string, number[]>;

/** A method that evicts nothing and adds up the attention on some rows. */
function probe(
  first: number,
  end: number,
  found: (layer: number, head: number, score: number) => void,
): Method {
  return {
    name: "probe",
    title: "Probe",
    summary: "reads the attention on given rows",
    kind: "none",
    acts: "once per layer, when prefill ends",
    granularities: ["query_head"],
    differs: "nothing known",
    options: {},
    create: () => ({
      observe: { windowQueries: 1 },
      afterPrefill(layer): void {
        using scores = layer.observationScores({
          window: 1,
          groupReduce: "mean",
          allRows: true,
        });
        const values = scores.read();
        for (let head = 0; head < layer.storedHeads; head++) {
          const row = values.subarray(
            head * layer.length + first,
            head * layer.length + end,
          );
          found(layer.layer, head, row.reduce((sum, x) => sum + x, 0));
        }
      },
    }),
  };
}

/**
 * Scores all heads on needle prompts.
 *
 * @param model the model; it needs a tokenizer
 * @param options lengths, depths, seed
 */
export async function headScores(
  model: LanguageModel,
  { lengths, depths, seed, onProgress }: HeadScoreOptions,
): Promise<HeadScores> {
  const { layers, queryHeads } = model.shape;
  const scores: HeadScores = {};
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < queryHeads; head++) {
      scores[`${layer}-${head}`] = [];
    }
  }
  const task = needleTask({ lengths: [...lengths], depths, seed });
  const asked = promptModel(model.folder, "");
  const codec = {
    encode: (text: string) =>
      asked.tokenizer.encode(text, { specialTokens: false }),
    decode: (ids: number[]) => asked.tokenizer.decode(ids),
  };
  const lead = asked.tokenizer.encodePrompt("").length;
  let done = 0;
  for (const example of task.examples(codec)) {
    const { ids } = buildPrompt(asked, example, {
      chat: "none",
      maxPromptTokens: null,
      truncate: "refuse",
      beyondPositions: false,
    });
    const [first, end] = example.meta.needleTokens as [number, number];
    await generate(model, ids, [{
      method: probe(lead + first, lead + end, (layer, head, score) => {
        scores[`${layer}-${head}`]!.push(score);
      }),
      options: {},
      granularity: "query_head",
    }], { maxNewTokens: 1 });
    onProgress?.(++done, task.count);
  }
  return scores;
}
