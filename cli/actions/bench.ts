// deno-lint-ignore-file no-console -- the command line prints
import {
  benchConfigurations,
  type BenchRow,
  type Spread,
} from "../../eval/bench.ts";
import { labelsOf, LanguageModel } from "../../eval/engine/mod.ts";
import {
  formatBytes,
  type IntervalCell,
  type Table,
  toTerminal,
} from "../../eval/tables/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import {
  configurationsOf,
  openModel,
  printJson,
  progressBar,
} from "./_runtime.ts";

/** `kvf bench`. */
export async function benchAction(call: Call): Promise<number> {
  const { flags } = call;
  const configurations = await configurationsOf(call);
  using model = await benchModel(call);
  const readBandwidth = model.device.readBandwidth(512 * 2 ** 20);
  const bar = progressBar("bench", flags.json === true);
  let rows: BenchRow[];
  try {
    rows = await benchConfigurations(model, configurations, {
      lengths: flags.lengths as number[],
      batch: flags.batch as number,
      newTokens: flags.newTokens as number,
      repeats: flags.repeats as number,
      readBandwidth,
      onProgress: (done, total) => bar.set(done, total),
    });
  } finally {
    bar.stop();
  }
  const device = model.device.info();
  const labels = labelsOf(configurations);
  const named = rows.map((row) => ({
    ...row,
    label: labels[configurations.indexOf(row.configuration)]!,
  }));
  if (flags.json) {
    const { dtype, cacheDtype } = model.facts;
    printJson({
      device,
      readBandwidth,
      weightBytes: model.native.bytes,
      ...{ dtype, cacheDtype },
      repeats: flags.repeats,
      newTokens: flags.newTokens,
      rows: named.map(({ label, configuration, ...row }) => ({
        configuration: label,
        method: configuration.method.name,
        options: configuration.options,
        granularity: configuration.granularity,
        ...row,
      })),
    });
    return 0;
  }
  console.log(
    `${device.name}; reads ${(readBandwidth / 1e9).toFixed(1)} GB/s; weights ${
      formatBytes(model.native.bytes)
    } in ${model.facts.dtype}; median [lowest, highest] of ${flags.repeats}`,
  );
  console.log(toTerminal(benchTable(named)));
  return 0;
}

type NamedRow = BenchRow & { label: string };

function benchTable(rows: readonly NamedRow[]): Table<NamedRow> {
  const range = ({ median, low, high }: Spread): IntervalCell => ({
    value: median,
    low,
    high,
  });
  const bytes = { format: formatBytes };
  return {
    rows,
    columns: [
      { title: "configuration", cell: ({ label }) => label },
      { title: "prompt", digits: 0, cell: ({ promptTokens }) => promptTokens },
      { title: "batch", digits: 0, cell: ({ batch }) => batch },
      {
        title: "first token ms",
        digits: 0,
        cell: ({ firstTokenMs }) => range(firstTokenMs),
      },
      {
        title: "prefill tok/s",
        digits: 0,
        cell: ({ prefillTokensPerSecond }) => prefillTokensPerSecond,
      },
      {
        title: "policy ms",
        digits: 1,
        cell: ({ compressMs }) => compressMs.median,
      },
      {
        title: "ms/step",
        cell: ({ decodeMsPerStep }) => range(decodeMsPerStep),
      },
      {
        title: "tok/s",
        digits: 1,
        cell: ({ decodeTokensPerSecond }) => decodeTokensPerSecond,
      },
      {
        title: "samples/s",
        cell: ({ samplesPerSecond }) => samplesPerSecond,
      },
      {
        title: "of bandwidth",
        // More than memory can give: a processor's caches hold the model.
        format: (share) =>
          share > 1 ? "in caches" : `${(100 * share).toFixed(0)} %`,
        cell: ({ bandwidthShare }) => bandwidthShare,
      },
      { title: "promised", ...bytes, cell: (row) => row.promisedBytes },
      { title: "resident", ...bytes, cell: (row) => row.residentBytes },
      { title: "peak", ...bytes, cell: (row) => row.peakBytes },
    ],
  };
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
