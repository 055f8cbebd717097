/**
 * The eviction explorer: the prompt's text, shaded by what each configuration kept. Part of the page: it runs in the
 * browser.
 *
 * @module
 */
import type { View, ViewConfiguration } from "../../view/types.ts";
import {
  bytesText,
  count,
  make,
  percent,
  selectBox,
  sliderBox,
} from "./dom.ts";
import { say } from "./hint.ts";
import {
  countLayers,
  type LayerCounts,
  meanScore,
  meanScores,
  shadeOfScore,
  shadeOfShare,
  snapshotAt,
  sumLayers,
} from "./kept.ts";
import {
  drawStrip,
  GONE,
  paint,
  type Panel,
  ScrolledText,
  type StripColours,
  stripColours,
  visible,
} from "./panel.ts";
import type { ViewState } from "./rows.ts";
import { TokenInfo, type TokenLine } from "./token_info.ts";

/** Shade of a token that was not generated yet. */
const FUTURE = 9;

/** Spans that are shaded in one go when nothing else is to be done. */
const SLICE = 1500;

/** Shaded in this order when nothing else is chosen: at most so many panels. */
const FIRST_PANELS = 3;

/** Visible form of a token in hints. */
function quoted(token: string): string {
  return `“${token.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}”`;
}

/** Token by token what configurations kept. */
export class Explorer {
  readonly #view: View;
  readonly #state: ViewState;
  readonly #panels: Panel[] = [];
  readonly #info: TokenInfo;
  #shade: "kept" | "score" = "kept";
  #token = -1;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Builds the explorer into `root`; `changed` is called when layer, head or step were chosen anew. */
  constructor(
    root: HTMLElement,
    view: View,
    state: ViewState,
    changed: () => void,
  ) {
    this.#view = view;
    this.#state = state;
    this.#info = new TokenInfo(view.model.layers);
    const place = make("div", { class: "text-panels" });
    root.append(this.#controls(changed), this.#info.root, place);
    for (const one of view.configurations) {
      this.#panels.push(this.#panel(one));
    }
    const compressed = this.#panels.filter(({ configuration }) =>
      configuration.method !== "fullkv"
    );
    const first = (compressed.length > 0 ? compressed : this.#panels)
      .slice(0, FIRST_PANELS);
    for (const panel of this.#panels) {
      panel.root.hidden = !first.includes(panel);
      place.append(panel.root);
    }
    for (const box of root.querySelectorAll<HTMLInputElement>(".shown input")) {
      box.checked = !this.#panels[Number(box.value)]!.root.hidden;
    }
    this.update();
    this.#show(view.highlights[0]?.[0] ?? 0, false);
  }

  #controls(changed: () => void): HTMLElement {
    const { model, configurations } = this.#view;
    const moments = [
      ...new Set(
        configurations.flatMap(({ snapshots }) =>
          snapshots.map(({ generated }) => generated)
        ),
      ),
    ].sort((a, b) => a - b);
    const choose = (what: keyof ViewState) => (value: number) => {
      this.#state[what] = value;
      this.update();
      changed();
    };
    const all = (what: string, n: number) => (value: number) =>
      value < 0 ? `all ${n} ${what}s` : `${what} ${value}`;
    const shown = make(
      "fieldset",
      { class: "shown" },
      make("legend", {}, "Side by side"),
      ...configurations.map((one, i) =>
        make(
          "label",
          {},
          make("input", {
            type: "checkbox",
            value: i,
            change: (event) => {
              const box = event.target as HTMLInputElement;
              const panel = this.#panels[i]!;
              const other = this.#panels.find(({ root }) => !root.hidden);
              panel.root.hidden = !box.checked;
              if (box.checked) {
                panel.text.fit();
                if (other) panel.text.top = other.text.top;
              }
              this.update();
            },
          }),
          one.name,
        )
      ),
    );
    const shade = selectBox("Shade by", [
      ["kept", "how many layers and heads keep the token"],
      [
        "score",
        `attention of the last ${this.#view.scoreWindow} prompt tokens`,
      ],
    ], (value) => {
      this.#shade = value as "kept" | "score";
      this.update();
    });
    return make(
      "div",
      { class: "controls no-print" },
      shown,
      sliderBox(
        "Layer",
        { min: -1, max: model.layers - 1, value: -1 },
        all("layer", model.layers),
        choose("layer"),
      ).box,
      sliderBox(
        "KV head",
        { min: -1, max: model.kvHeads - 1, value: -1 },
        all("head", model.kvHeads),
        choose("head"),
      ).box,
      sliderBox(
        "Moment",
        { min: 0, max: moments.length - 1, value: 0 },
        (i) => i === 0 ? "after prefill" : `after ${moments[i]} new tokens`,
        (i) => choose("generated")(moments[i]!),
      ).box,
      shade.box,
      ...(this.#view.highlights.length > 0
        ? [make("button", {
          type: "button",
          click: () => this.#show(this.#view.highlights[0]![0]),
        }, "Go to the marked text")]
        : []),
    );
  }

  #panel(configuration: ViewConfiguration): Panel {
    const { tokens, highlights } = this.#view;
    const marked = new Set(
      highlights.flatMap(([first, end]) =>
        Array.from({ length: end - first }, (_, i) => first + i)
      ),
    );
    const spans = [...tokens, ...configuration.generated].map((token, i) => {
      const span = document.createElement("span");
      span.textContent = token;
      span.dataset.i = String(i);
      return span;
    });
    const base = spans.map((_, i) => marked.has(i) ? "marked " : "");
    const frame = make(
      "div",
      {
        class: "text",
        tabindex: 0,
        role: "group",
        "aria-label":
          `Prompt as ${configuration.name} keeps it; arrow keys go from token to token`,
        mousemove: (event) => this.#hover(event),
        click: (event) => this.#hover(event),
        keydown: (event) => this.#key(event as KeyboardEvent),
      },
    );
    const text = new ScrolledText(frame, [
      make("span", { class: "prompt" }, ...spans.slice(0, tokens.length)),
      make("span", { class: "answer-begins", title: "The answer begins" }),
      make("span", { class: "answer" }, ...spans.slice(tokens.length)),
    ], () => {
      this.#follow(text);
      const panel = this.#panels.find((one) => one.text === text);
      if (panel) paint(panel, visible(panel));
    });
    const map = make("canvas", {
      class: "map",
      title: "Positions across, layers down; click to go there",
      "aria-hidden": "true",
      click: (event) => {
        const { left, width } = map.getBoundingClientRect();
        const share = ((event as MouseEvent).clientX - left) / width;
        this.#show(Math.floor(share * tokens.length));
      },
    });
    const summary = make("p", { class: "summary" });
    const root = make(
      "article",
      { class: "text-panel" },
      make("h4", {}, configuration.name),
      summary,
      map,
      frame,
    );
    const shades = new Int8Array(spans.length).fill(-1);
    const wanted = shades.slice();
    return {
      configuration,
      root,
      text,
      summary,
      map,
      spans,
      base,
      shades,
      wanted,
    };
  }

  /** Shades all panels that are shown anew: at once what is in sight, the rest as time allows. */
  update(): void {
    const scores = this.#shade === "score"
      ? meanScores(this.#view, this.#state)
      : undefined;
    const shown = this.#panels.filter(({ root }) => !root.hidden);
    // All looking before all painting, so that the page is laid out once.
    const sights = shown.map(visible);
    const colours = stripColours();
    for (const [i, panel] of shown.entries()) {
      this.#plan(panel, scores, colours);
      paint(panel, sights[i]!);
    }
    if (this.#token >= 0) this.#tell(this.#token, false);
    this.#later(shown);
  }

  /** Paints what is out of sight, a slice at a time. */
  #later(panels: readonly Panel[]): void {
    clearTimeout(this.#timer);
    const root = document.documentElement;
    root.dataset.painting = "";
    let at = 0;
    const next = (): void => {
      const panel = panels.find(({ spans }) => at < spans.length);
      if (panel === undefined) {
        delete root.dataset.painting;
        return;
      }
      for (const one of panels) paint(one, [at, at + SLICE / panels.length]);
      at += SLICE / panels.length;
      this.#timer = setTimeout(next, 0);
    };
    this.#timer = setTimeout(next, 30);
  }

  #counts(panel: Panel): LayerCounts {
    const { generated, head } = this.#state;
    const { counts } = panel;
    if (counts?.generated === generated && counts.head === head) {
      return counts.found;
    }
    const snapshot = snapshotAt(panel.configuration, generated);
    const found = countLayers(this.#view, panel.configuration, snapshot, head);
    panel.counts = { generated, head, found };
    return found;
  }

  /** Works out the shades of a panel. */
  #plan(
    panel: Panel,
    scores: Float64Array | undefined,
    colours: StripColours,
  ): void {
    const { wanted } = panel;
    const found = this.#counts(panel);
    const { counts, of } = sumLayers(found, this.#state.layer);
    const n = this.#view.tokens.length;
    const past = n + this.#state.generated;
    for (let i = 0; i < wanted.length; i++) {
      const shade = scores === undefined
        ? shadeOfShare(counts[i]! / of)
        : i < n
        ? shadeOfScore(scores[i]!)
        : 0;
      // Tokens that are gone look gone, whatever the shade says.
      wanted[i] = i >= past ? FUTURE : counts[i] === 0 ? shade + GONE : shade;
    }
    this.#summarise(panel, counts, of);
    drawStrip(panel, {
      found,
      view: this.#view,
      chosen: this.#state.layer,
      colours,
    });
  }

  #summarise(panel: Panel, counts: Uint16Array, of: number): void {
    const { configuration } = panel;
    const snapshot = snapshotAt(configuration, this.#state.generated);
    const seen = this.#view.tokens.length + this.#state.generated;
    let rows = 0;
    for (const n of counts) rows += n;
    const marked = this.#view.highlights.map(([first, end]) => {
      const own = [...counts.subarray(first, end)];
      const some = own.filter((n) => n > 0).length;
      return ` Marked text: ${some} of ${
        end - first
      } tokens are kept somewhere, ${
        percent(own.reduce((sum, n) => sum + n, 0) / (of * (end - first)))
      } of its rows.`;
    });
    panel.summary.textContent = `${count(rows / of)} rows per head (${
      percent(rows / of / Math.max(1, seen))
    }); ${bytesText(snapshot.ownedBytes)} in all.${marked.join("")}`;
  }

  #hover(event: Event): void {
    const span = (event.target as Element).closest?.("[data-i]");
    if (span instanceof HTMLElement) this.#tell(Number(span.dataset.i), false);
  }

  #key(event: KeyboardEvent): void {
    const last = this.#view.tokens.length - 1;
    const moves: { [key: string]: number } = {
      ArrowRight: this.#token + 1,
      ArrowLeft: this.#token - 1,
      ArrowDown: this.#token + 16,
      ArrowUp: this.#token - 16,
      Home: 0,
      End: last,
    };
    const to = moves[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#show(Math.max(0, Math.min(last, to)));
  }

  /** Chooses a token and brings it into sight in every panel. */
  #show(token: number, spoken = true): void {
    this.#tell(token, spoken);
    for (const { root, text, spans } of this.#panels) {
      if (root.hidden) continue;
      const at = spans[token]!.offsetTop;
      if (at < text.top || at > text.top + text.height - 24) {
        text.fit();
        text.top = at - text.height / 2;
      }
    }
  }

  /** Scrolls the other panels along. */
  #follow(from: ScrolledText): void {
    for (const { root, text } of this.#panels) {
      if (text === from || root.hidden) continue;
      if (Math.abs(text.top - from.top) > 1) text.top = from.top;
    }
  }

  /** What is known of a token: a line per configuration, a column per layer. */
  #tell(token: number, spoken: boolean): void {
    const { tokens } = this.#view;
    for (const { spans } of this.#panels) {
      spans[this.#token]?.removeAttribute("aria-current");
      spans[token]?.setAttribute("aria-current", "true");
    }
    this.#token = token;
    const isNew = token >= tokens.length;
    const head = isNew
      ? `New token ${token - tokens.length + 1}`
      : `Token ${count(token)} of ${count(tokens.length)} ${
        quoted(tokens[token]!)
      }`;
    const attention = isNew
      ? ""
      : `; attention of the last ${this.#view.scoreWindow} prompt tokens ${
        percent(meanScore(this.#view, this.#state, token))
      }`;
    const lines = this.#panels.filter(({ root }) => !root.hidden).map(
      (panel): TokenLine => {
        const { layers, of } = this.#counts(panel);
        return {
          name: panel.configuration.name,
          cells: layers.map((counts) => ({ kept: counts[token]!, of })),
        };
      },
    );
    this.#info.show({ head, attention, lines });
    if (!spoken) return;
    say(
      `${head}${attention}; ${
        lines.map(({ name, cells }) =>
          `${name} keeps it in ${
            cells.reduce((sum, { kept }) => sum + kept, 0)
          } of ${cells.reduce((sum, { of }) => sum + of, 0)} heads`
        ).join("; ")
      }`,
    );
  }
}
