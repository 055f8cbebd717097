// deno-lint-ignore-file no-console -- the command line prints
/**
 * Live progress of an evaluation: one bar per configuration with the time that is left on a terminal, a line now and
 * then elsewhere.
 *
 * @module
 */
import { MultiBar, Presets, type SingleBar } from "cli-progress";

/** Configurations that get a bar of their own; more are shown together. */
const MOST_BARS = 24;
/** Milliseconds between lines where there is no terminal. */
const LINE_MS = 10_000;

/** Counts of one configuration. */
export interface Count {
  /** Its label. */
  label: string;
  /** Records that were computed. */
  done: number;
  /** Records to compute. */
  total: number;
}

/** Shows how far an evaluation is. */
export class EvaluationProgress {
  readonly #name: string;
  readonly #terminal: boolean;
  readonly #silent: boolean;
  readonly #started = performance.now();
  #bars: { multi: MultiBar; byLabel: Map<string, SingleBar> } | undefined;
  #lastLine = performance.now();

  /** Shows nothing yet. */
  constructor(name: string, silent: boolean) {
    this.#name = name;
    this.#silent = silent;
    this.#terminal = Deno.stderr.isTerminal();
  }

  /** Shows the counts of all configurations that have something to do. */
  update(counts: readonly Count[]): void {
    if (this.#silent) return;
    if (this.#terminal) this.#draw(counts);
    else if (performance.now() - this.#lastLine >= LINE_MS) {
      this.#lastLine = performance.now();
      console.error(this.#line(counts));
    }
  }

  #draw(counts: readonly Count[]): void {
    const all = total(this.#name, counts);
    const shown = counts.length > MOST_BARS ? [all] : [...counts, all];
    if (!this.#bars) {
      const width = Math.max(...shown.map(({ label }) => label.length));
      const multi = new MultiBar({
        format: "{label} {bar} {value}/{total} | {left} left",
        clearOnComplete: true,
        stopOnComplete: false,
      }, Presets.shades_classic);
      this.#bars = {
        multi,
        byLabel: new Map(
          shown.map((one) => [
            one.label,
            multi.create(one.total, 0, {
              label: one.label.padEnd(width),
              left: "?",
            }),
          ]),
        ),
      };
    }
    for (const one of shown) {
      this.#bars.byLabel.get(one.label)?.update(one.done, {
        left: this.#left(one),
      });
    }
  }

  /** The time that is left at the pace so far. */
  #left({ done, total }: Count): string {
    const seconds = (performance.now() - this.#started) / 1e3;
    return done === 0 ? "?" : duration(seconds / done * (total - done));
  }

  #line(counts: readonly Count[]): string {
    const all = total(this.#name, counts);
    const open = counts.filter(({ done, total }) => done < total);
    const each = open.slice(0, MOST_BARS).map((one) =>
      `${one.label} ${one.done}/${one.total} (${this.#left(one)})`
    );
    return `${all.label} ${all.done}/${all.total}, ${this.#left(all)} left: ${
      each.join(", ")
    }`;
  }

  /** Takes the bars away. */
  stop(): void {
    this.#bars?.multi.stop();
    this.#bars = undefined;
  }
}

function total(label: string, counts: readonly Count[]): Count {
  const sum = (what: "done" | "total"): number =>
    counts.reduce((all, one) => all + one[what], 0);
  return { label, done: sum("done"), total: sum("total") };
}

/** Seconds in words. */
function duration(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${s % 60}s`;
  return `${Math.floor(s / 3600)}h${Math.floor(s % 3600 / 60)}m`;
}
