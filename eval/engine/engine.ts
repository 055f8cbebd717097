/**
 * Generation from one prompt: one prefill for all configurations that may share it, all of them decoded as one batch.
 *
 * @module
 */
import type { LanguageModel } from "./language_model.ts";
import { answerAll } from "./scheduler.ts";
import type { Configuration, Generation, GenerationOptions } from "./types.ts";

/**
 * Generates from one prompt with each configuration.
 *
 * @param model the model
 * @param prompt token ids, at least one
 * @param configurations at least one; those that alter prefill get a prefill of their own
 * @param options how to generate
 * @returns one generation per configuration, in order
 */
export async function generate(
  model: LanguageModel,
  prompt: ArrayLike<number>,
  configurations: readonly Configuration[],
  options: GenerationOptions = {},
): Promise<Generation[]> {
  const generations: Generation[] = [];
  const jobs = [{ prompt, configurations, options }];
  const schedule = {
    slots: Math.max(1, configurations.length),
    ...(options.signal ? { signal: options.signal } : {}),
  };
  for await (const answers of answerAll(model, jobs, schedule)) {
    for (const { index, generation } of answers) {
      generations[index] = generation;
    }
  }
  return generations;
}
