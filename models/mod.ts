/**
 * Models: what a Hugging Face folder holds, checked, and streamed into whatever runs it. Needs read permission for the
 * folder and nothing else.
 *
 * @module
 */
export {
  ARCHITECTURES,
  type ModelConfigOptions,
  parseModelConfig,
  readModelConfig,
} from "./config.ts";
export {
  type ModelFolder,
  type ModelSummary,
  openModelFolder,
} from "./folder.ts";
export { type GenerationConfig, parseGenerationConfig } from "./generation.ts";
export { ropeFrequencies, type RopeParameters } from "./rope.ts";
export {
  readSafetensorsHeader,
  readTensor,
  readWeightHeaders,
  type SafetensorsHeader,
  type StreamOptions,
  streamTensors,
  type Tensor,
  TENSOR_DTYPE_BYTES,
  type TensorChunk,
  type TensorDtype,
  type TensorInfo,
  type TensorToWrite,
  writeSafetensors,
} from "./safetensors.ts";
export {
  type LoadEntry,
  type LoadPlan,
  planLoad,
  TENSOR_KINDS,
  type TensorKind,
  type TensorSlot,
  tensorSlots,
  WEIGHT_DTYPES,
} from "./tensors.ts";
export {
  type DecodeOptions,
  type PieceDecoder,
  TokenStream,
  type TokenTexts,
} from "./token_stream.ts";
export {
  type ChatMessage,
  type ChatOptions,
  createTokenizer,
  type EncodeOptions,
  Tokenizer,
  type TokenizerParts,
} from "./tokenizer.ts";
export type { ModelConfig, RopeSummary, WeightDtype } from "./types.ts";
export {
  type LoadOptions,
  type LoadProgress,
  loadWeights,
  type WeightSink,
} from "./weights.ts";
