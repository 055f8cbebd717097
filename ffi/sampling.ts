/**
 * How tokens are drawn from logits.
 *
 * @module
 */
import { checkInteger, checkIntegers } from "./_check.ts";
import { SAMPLING } from "./_structs.ts";

/** How the next tokens of a sequence are drawn. */
export interface Sampling {
  /** 0: greedy, the lowest id among equals. */
  temperature: number;
  /** Only the `topK` most likely tokens; 0: all. */
  topK: number;
  /** Only the smallest set of most likely tokens that reaches this probability; 1: all. */
  topP: number;
  /** Draws depend on it and on the number of tokens generated, on nothing else; up to 2^53 - 1. */
  seed: number;
  /** Tokens that end the sequence, at most 64. */
  stop: readonly number[];
  /** Stop tokens cannot be drawn before so many tokens were generated. */
  minNewTokens: number;
}

/** The most likely token, without stop tokens: what a new sequence does. */
export const GREEDY: Sampling = {
  temperature: 0,
  topK: 0,
  topP: 1,
  seed: 0,
  stop: [],
  minNewTokens: 0,
};

/** Checks a sampling and brings it into the form that C reads. */
export function encodeSampling(
  sampling: Sampling,
): { sampling: Uint8Array<ArrayBuffer>; stop: Uint32Array<ArrayBuffer> } {
  const action = "set sampling";
  const { temperature, topP, seed } = sampling;
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw new RangeError(
      `Cannot ${action} as temperature must be >= 0: temperature is ${temperature}`,
    );
  }
  if (!(topP > 0 && topP <= 1)) {
    throw new RangeError(
      `Cannot ${action} as topP must be above 0 and at most 1: topP is ${topP}`,
    );
  }
  checkInteger(action, "seed", seed, 0, Number.MAX_SAFE_INTEGER);
  if (sampling.stop.length > 64) {
    throw new RangeError(
      `Cannot ${action} as there can be at most 64 stop tokens: there are ${sampling.stop.length}`,
    );
  }
  return {
    sampling: SAMPLING.encode({
      temperature,
      top_k: checkInteger(action, "topK", sampling.topK),
      top_p: topP,
      seed_low: seed % 2 ** 32,
      seed_high: Math.floor(seed / 2 ** 32),
      min_new_token: checkInteger(
        action,
        "minNewTokens",
        sampling.minNewTokens,
      ),
    }),
    stop: checkIntegers(action, "stop", sampling.stop),
  };
}
