/**
 * Frequencies of rotary position embeddings, computed in doubles and rounded once.
 *
 * Sources: RoPE, https://arxiv.org/abs/2104.09864; position interpolation, https://arxiv.org/abs/2306.15595; YaRN,
 * https://arxiv.org/abs/2309.00071; Llama 3.1's smoothing and the treatment of missing fields as in Hugging Face
 * transformers 5.
 *
 * @module
 */

/** Parameters of the rotary embedding, with defaults filled in. */
export type RopeParameters =
  | { type: "default"; theta: number }
  | { type: "linear"; theta: number; factor: number }
  | {
    type: "llama3";
    theta: number;
    factor: number;
    /** Wavelengths above `originalMaxPositions / lowFreqFactor` are stretched by `factor`. */
    lowFreqFactor: number;
    /** Wavelengths below `originalMaxPositions / highFreqFactor` stay; between the two there is a ramp. */
    highFreqFactor: number;
    /** Tokens that the model was first trained with. */
    originalMaxPositions: number;
  }
  | {
    type: "yarn";
    theta: number;
    factor: number;
    /** Tokens that the model was first trained with. */
    originalMaxPositions: number;
    /** Pairs that turn more often than this within the original length stay. */
    betaFast: number;
    /** Pairs that turn less often than this within the original length are stretched by `factor`. */
    betaSlow: number;
    /** Factor on cosine and sine; computed when missing. */
    attentionFactor?: number;
    /** With `mscaleAllDim`: the attention factor is the ratio of the two. */
    mscale?: number;
    /** See `mscale`. */
    mscaleAllDim?: number;
    /** Whether the ramp's ends are rounded to whole pairs. */
    truncate: boolean;
  };

/** YaRN's factor on cosine and sine for a stretch of `scale`. */
function yarnMagnitude(scale: number, mscale = 1): number {
  return scale <= 1 ? 1 : 0.1 * mscale * Math.log(scale) + 1;
}

/**
 * Computes the angle per position of each rotated pair.
 *
 * @param headDim Elements of one head, even.
 * @param rope Parameters.
 * @returns `invFreq`: `[headDim / 2] f32`, and `scale`, the factor on cosine and sine.
 */
export function ropeFrequencies(
  headDim: number,
  rope: RopeParameters,
): { invFreq: Float32Array; scale: number } {
  const pairs = headDim / 2;
  const plain = Array.from(
    { length: pairs },
    (_, i) => Math.pow(rope.theta, (-2 * i) / headDim),
  );
  switch (rope.type) {
    case "default":
      return { invFreq: Float32Array.from(plain), scale: 1 };
    case "linear":
      return {
        invFreq: Float32Array.from(plain, (f) => f / rope.factor),
        scale: 1,
      };
    case "llama3": {
      const longest = rope.originalMaxPositions / rope.lowFreqFactor;
      const shortest = rope.originalMaxPositions / rope.highFreqFactor;
      const invFreq = Float32Array.from(plain, (f) => {
        const wavelength = (2 * Math.PI) / f;
        if (wavelength < shortest) return f;
        if (wavelength > longest) return f / rope.factor;
        const keep = (rope.originalMaxPositions / wavelength -
          rope.lowFreqFactor) / (rope.highFreqFactor - rope.lowFreqFactor);
        return (1 - keep) * (f / rope.factor) + keep * f;
      });
      return { invFreq, scale: 1 };
    }
    case "yarn": {
      // The pair whose wavelength fits `turns` times into the original length.
      const pairAt = (turns: number): number =>
        (headDim *
          Math.log(rope.originalMaxPositions / (turns * 2 * Math.PI))) /
        (2 * Math.log(rope.theta));
      const round = rope.truncate;
      const first = pairAt(rope.betaFast);
      const last = pairAt(rope.betaSlow);
      const low = Math.max(round ? Math.floor(first) : first, 0);
      const high = Math.min(round ? Math.ceil(last) : last, headDim - 1);
      const width = low === high ? 0.001 : high - low;
      const invFreq = Float32Array.from(plain, (f, i) => {
        const stretched = Math.min(Math.max((i - low) / width, 0), 1);
        return stretched * (f / rope.factor) + (1 - stretched) * f;
      });
      const scale = rope.attentionFactor ??
        (rope.mscale && rope.mscaleAllDim
          ? yarnMagnitude(rope.factor, rope.mscale) /
            yarnMagnitude(rope.factor, rope.mscaleAllDim)
          : yarnMagnitude(rope.factor));
      return { invFreq, scale };
    }
  }
}
