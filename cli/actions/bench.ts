// deno-lint-ignore-file no-console -- the command line prints
import {
  type Configuration,
  generate,
  labelOf,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import {
  bytes,
  configurationsOf,
  median,
  openModel,
  printColumns,
  printJson,
} from "./_runtime.ts";

interface Row {
  configuration: string;
  promptTokens: number;
  batch: number;
  prefillMs: number;
  prefillTokensPerSecond: number;
  decodeMsPerStep: number;
  decodeTokensPerSecond: number;
  /** Bytes that a step reads over its time, as a share of the read bandwidth of this run. */
  bandwidthShare: number;
  residentBytes: number;
  peakBytes: number;
  spread: { prefillMs: [number, number]; decodeMsPerStep: [number, number] };
}

/** `kvf bench`. */
export async function benchAction(call: Call): Promise<number> {
  const { flags } = call;
  const configurations = await configurationsOf(call);
  using model = await benchModel(call);
  const bandwidth = model.device.readBandwidth(512 * 2 ** 20);
  const rows: Row[] = [];
  for (const length of flags.lengths as number[]) {
    for (const configuration of configurations) {
      rows.push(await measure(model, configuration, length, flags, bandwidth));
    }
  }
  const device = model.device.info();
  if (flags.json) {
    printJson({
      device,
      readBandwidth: bandwidth,
      repeats: flags.repeats,
      newTokens: flags.newTokens,
      rows,
    });
    return 0;
  }
  console.log(
    `${device.name}; reads ${
      (bandwidth / 1e9).toFixed(1)
    } GB/s; median of ${flags.repeats}`,
  );
  printColumns([
    [
      "configuration",
      "prompt",
      "batch",
      "prefill ms",
      "tok/s",
      "ms/step",
      "tok/s",
      "of bandwidth",
      "cache",
      "peak",
    ],
    ...rows.map((row) => [
      row.configuration,
      String(row.promptTokens),
      String(row.batch),
      row.prefillMs.toFixed(0),
      row.prefillTokensPerSecond.toFixed(0),
      row.decodeMsPerStep.toFixed(2),
      row.decodeTokensPerSecond.toFixed(1),
      `${(100 * row.bandwidthShare).toFixed(0)} %`,
      bytes(row.residentBytes),
      bytes(row.peakBytes),
    ]),
  ]);
  return 0;
}

function benchModel({ flags }: Call): Promise<LanguageModel> {
  const shape = text(flags, "randomWeights");
  if ((shape === undefined) === (text(flags, "model") === undefined)) {
    throw new UsageError(
      "Cannot bench as exactly one of --model and --random-weights must be given",
    );
  }
  if (shape === undefined) return openModel(flags);
  return Promise.resolve(LanguageModel.random(shape, {
    device: text(flags, "device") ?? "cpu",
    ...(flags.threads === undefined
      ? {}
      : { threads: flags.threads as number }),
    ...(flags.dtype === undefined
      ? {}
      : { dtype: flags.dtype as "f32" | "f16" | "bf16" }),
    ...(flags.cacheDtype === undefined
      ? {}
      : { cacheDtype: flags.cacheDtype as "f32" | "f16" | "bf16" }),
  }));
}

async function measure(
  model: LanguageModel,
  configuration: Configuration,
  length: number,
  flags: Call["flags"],
  bandwidth: number,
): Promise<Row> {
  const batch = flags.batch as number, newTokens = flags.newTokens as number;
  const vocab = model.native.config.vocab;
  // Any text does for timing; a fixed pattern keeps the run reproducible.
  const prompt = Array.from({ length }, (_, i) => (i * 7919 + 13) % vocab);
  const copies = Array.from({ length: batch }, () => configuration);
  const prefill: number[] = [], decode: number[] = [];
  let last: Awaited<ReturnType<typeof generate>>[number] | undefined;
  for (let i = 0; i < (flags.repeats as number) + 1; i++) {
    const generations = await generate(model, prompt, copies, {
      maxNewTokens: newTokens,
      chunk: newTokens,
    });
    last = generations[0]!;
    if (i === 0) continue; // warm-up
    prefill.push(last.timing.prefillMs + last.timing.compressMs);
    decode.push(last.timing.decodeMsPerToken);
  }
  const prefillMs = median(prefill), step = median(decode);
  const read = model.native.stepBytes + batch * last!.cache.residentBytes;
  return {
    configuration: labelOf(configuration),
    promptTokens: length,
    batch,
    prefillMs,
    prefillTokensPerSecond: 1e3 * length / prefillMs,
    decodeMsPerStep: step,
    decodeTokensPerSecond: 1e3 * batch / step,
    bandwidthShare: read / (step / 1e3) / bandwidth,
    residentBytes: last!.cache.residentBytes,
    peakBytes: last!.cache.peakBytes,
    spread: {
      prefillMs: [Math.min(...prefill), Math.max(...prefill)],
      decodeMsPerStep: [Math.min(...decode), Math.max(...decode)],
    },
  };
}
