/**
 * The table of `deno task bench:gpu`: what was measured, the floor that the hardware sets, and a peer's number.
 *
 * @module
 */

/** One line of the program's, or of the peer's, output. */
export interface Measurement {
  /** What was measured. */
  what: string;
  /** Whose number it is; missing: ours. */
  peer?: string;
  /** Tokens of the prompt. */
  n?: number;
  /** Sequences. */
  batch?: number;
  /** Rows kept per head; 0: all. */
  rows?: number;
  /** Milliseconds. */
  ms?: number;
  /** Bits of a packed element; 0: plain rows. */
  bits?: number;
  /** Bytes that a step reads. */
  bytes?: number;
  /** Anything else. */
  [field: string]: unknown;
}

/** The facts of a model that floors follow from. */
export interface Shape {
  /** Number of layers. */
  layers: number;
  /** Width of the residual stream. */
  hidden: number;
  /** Query heads. */
  queryHeads: number;
  /** KV heads. */
  kvHeads: number;
  /** Columns of a head. */
  headDim: number;
  /** Width of the MLP. */
  intermediate: number;
}

/** Bytes per second that a model is to be loaded with where the disk is faster. */
const LOADING = 20e9;

/** Operations of the linear layers for one token, without the output matrix. */
export function linearFlop(shape: Shape): number {
  const { layers, hidden, queryHeads, kvHeads, headDim, intermediate } = shape;
  const attention = (2 * queryHeads + 2 * kvHeads) * headDim * hidden;
  return 2 * layers * (attention + 3 * hidden * intermediate);
}

/** Operations of causal attention of n tokens in all layers. */
export function attentionFlop(shape: Shape, n: number): number {
  return 2 * n * n * shape.queryHeads * shape.headDim * shape.layers;
}

/** A Markdown table with one line per measurement. */
export function table(
  shape: Shape,
  ours: Measurement[],
  peers: Measurement[],
): string {
  const one = (what: string) => ours.find((line) => line.what === what);
  const copy = Number(one("copy")?.bytes_per_s);
  const products = Number(one("products")?.flop_per_s);
  const rows: string[][] = [];
  for (const line of ours) {
    const { n = 0, ms = NaN, batch = 1 } = line;
    const kept = line.rows ? `${line.rows} rows` : "full";
    if (line.what === "decode") {
      const floor = Number(line.bytes) / copy * 1e3;
      const name = `decode, batch ${batch}, ${n} tokens, ${kept}`;
      rows.push([name, time(ms), time(floor), ratio(ms / floor)]);
    }
    if (line.what === "host") {
      const [reserve, send, follow] = [
        line.reserve_ms,
        line.send_ms,
        line.follow_ms,
      ].map(Number) as [number, number, number];
      rows.push([
        `decode, batch ${batch}, ${n} tokens, ${kept}: host, ${line.steps} steps`,
        time(reserve + send + follow),
        "",
        `rows ${time(reserve)}, state ${time(send)}, following ${time(follow)}`,
      ]);
    }
    if (line.what === "same") {
      rows.push([
        `tokens of a sequence among ${batch}, ${kept}: those of it alone`,
        `${line.equal_tokens} of ${line.steps}`,
        `${line.steps}`,
        line.equal === true ? "equal, logits too" : "DIFFERENT",
      ]);
    }
    if (line.what === "scarce") {
      const all = ours.find((o) => o.what === "scarce" && o.n === n);
      rows.push([
        `prefill, ${n} tokens to ${line.rows} rows, ${
          gib(line.free_bytes)
        } free`,
        line.refused === "" ? time(ms) : "refused",
        time(Number(all?.ms)),
        line.equal === true ? "same logits" : "DIFFERENT",
      ]);
    }
    if (line.what === "loading") {
      rows.push([
        `loading ${gib(line.bytes)} of weights, ${line.device}`,
        time(ms),
        `${time(Number(line.bytes) / LOADING * 1e3)} at 20 GB/s`,
        perSecond(line.bytes_per_s),
      ]);
      rows.push([
        `loading: peak of host memory, ${line.device}`,
        gib(line.host_peak_bytes),
        line.device === "cpu" ? gib(line.bytes) : "",
        "",
      ]);
    }
    if (line.what === "reading") {
      const slice = Number(line.slice) / 2 ** 20;
      rows.push([
        `reading those files, ${line.readers} readers, ${slice} MiB each`,
        perSecond(line.bytes_per_s),
        "",
        "",
      ]);
    }
    if (line.what === "bytes") {
      const [held, wanted] = [line.resident_bytes, line.expected_bytes];
      rows.push([
        `bytes of ${line.method}, ${n} tokens, mean of ${kept}, ${line.least} to ${line.most} a head`,
        gib(held, 4),
        gib(wanted, 4),
        ratio(Number(held) / Number(wanted)),
      ]);
    }
    if (line.what === "packing") {
      rows.push([
        `packing a prompt of ${n} tokens, ${line.bits} bits, batch ${batch}`,
        time(ms),
      ]);
    }
    if (line.what === "packed") {
      const floor = Number(line.bytes) / copy * 1e3;
      const format = line.bits === 0 ? "plain" : `${line.bits}-bit`;
      const name = `decode, batch ${batch}, ${n} tokens, ${format} rows`;
      rows.push([name, time(ms), time(floor), ratio(ms / floor)]);
      const plain = ours.find((o) =>
        o.what === "packed" && o.n === n && o.batch === line.batch &&
        o.bits === 0
      );
      if (line.bits !== 0) {
        const against = Number(plain?.ms);
        rows.push([
          `${name}: against plain rows`,
          time(ms),
          time(against),
          ratio(ms / against),
        ]);
      }
    }
    if (line.what === "program") {
      const plain = Number(line.plain_ms);
      const more = (x: number) => (100 * x / plain).toFixed(1);
      rows.push([
        `step of ${line.name}, batch ${batch}, ${n} rows, ${line.rows} read`,
        time(ms),
        `${time(plain)} without`,
        `${more(ms - plain)} % more, ${more(Number(line.host_ms))} % the host${
          line.whole_ms === undefined
            ? ""
            : `; all rows ${time(Number(line.whole_ms))}`
        }`,
      ]);
    }
    if (line.what === "attention") {
      const peer = peers.filter((p) => p.what === "attention" && p.n === n);
      const name = `attention of a layer, ${n} tokens, ${
        rate(line.flop_per_s)
      }`;
      rows.push([
        name,
        time(ms),
        peer.map((p) => `${p.peer} ${time(Number(p.ms))}`).join(", "),
        peer.map((p) => ratio(ms / Number(p.ms))).join(", "),
      ]);
    }
    if (line.what === "prefill") {
      const attention = ours.find((o) => o.what === "attention" && o.n === n);
      const linear = linearFlop(shape) * n / products * 1e3;
      const floor = linear + shape.layers * Number(attention?.ms);
      const name = `prefill, ${n} tokens`;
      rows.push([name, time(ms), time(floor), ratio(ms / floor)]);
      const compressed = Number(line.compressed_ms);
      rows.push([
        `${name}, each layer cut to ${line.rows} rows`,
        time(compressed),
        time(floor),
        ratio(compressed / floor),
      ]);
      rows.push([
        `${name}: share of window scores, selection, compaction`,
        time(Number(line.policy_ms)),
        "",
        `${(100 * Number(line.policy_ms) / compressed).toFixed(2)} %`,
      ]);
      rows.push([
        `${name}: peak memory`,
        gib(line.peak_bytes),
        "",
        "",
      ]);
    }
  }
  for (const line of peers) {
    if (line.what !== "decode" && line.what !== "prefill") continue;
    const own = ours.find((o) =>
      o.what === line.what && o.n === line.n &&
      (line.what === "prefill" ||
        o.batch === line.batch && o.rows === line.rows)
    );
    const cut = line.rows ? `, cut to ${line.rows} rows` : "";
    const ms = Number(own?.ms);
    rows.push([
      `${line.what}, ${line.n} tokens${cut}: against ${line.peer}`,
      time(ms),
      time(Number(line.ms)),
      `${ratio(Number(line.ms) / ms)} times as fast`,
    ]);
    if (line.peak_bytes === undefined) continue;
    rows.push([
      `prefill, ${line.n} tokens: peak memory of ${line.peer}`,
      gib(own?.peak_bytes),
      gib(line.peak_bytes),
      ratio(Number(own?.peak_bytes) / Number(line.peak_bytes)),
    ]);
  }
  const device = one("device");
  const head = device === undefined ? [] : [
    `${device.name}: copy ${bandwidth(copy)}, read ${
      bandwidth(Number(one("read")?.bytes_per_s))
    }, products of a layer ${rate(products)}${
      one("products")?.blas === false ? " (no cuBLASLt)" : ""
    }`,
    "",
  ];
  return [
    ...head,
    "| what | ours | floor or peer | ratio |",
    "| --- | --- | --- | --- |",
    ...rows.map((cells) => `| ${cells.join(" | ")} |`),
  ].join("\n");
}

function time(ms: number): string {
  if (!Number.isFinite(ms)) return "-";
  return ms < 1000 ? `${ms.toPrecision(3)} ms` : `${(ms / 1e3).toFixed(3)} s`;
}

function ratio(x: number): string {
  return Number.isFinite(x) ? x.toFixed(2) : "-";
}

function rate(flop: unknown): string {
  if (flop === undefined) return "-";
  return `${(Number(flop) / 1e12).toFixed(0)} TFLOP/s`;
}

function gib(bytes: unknown, digits = 2): string {
  return `${(Number(bytes) / 2 ** 30).toFixed(digits)} GiB`;
}

function perSecond(bytes: unknown): string {
  return `${(Number(bytes) / 1e9).toFixed(1)} GB/s`;
}

function bandwidth(bytes: number): string {
  return `${(bytes / 1e12).toFixed(2)} TB/s`;
}
