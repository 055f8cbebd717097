/**
 * Making elements, and numbers in words. Part of the page: it runs in the browser.
 *
 * @module
 */

/** Attributes of an element; functions are listeners, `false` leaves an attribute out. */
export type Attributes = {
  [name: string]: string | number | boolean | ((event: Event) => void);
};

function fill(
  element: Element,
  attributes: Attributes,
  children: readonly (Node | string)[],
): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children);
}

/** Makes an HTML element. */
export function make<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(name);
  fill(element, attributes, children);
  return element;
}

/** Makes an SVG element. */
export function draw<K extends keyof SVGElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  fill(element, attributes, children);
  return element;
}

/** Fails for what must be there. */
export function found<T>(value: T | null | undefined, what: string): T {
  if (value === null || value === undefined) {
    throw new Error(`Cannot show the page as it must hold ${what}`);
  }
  return value;
}

const NUMBERS = new Intl.NumberFormat("en");

/** An integer with thousands apart. */
export function count(n: number): string {
  return NUMBERS.format(Math.round(n));
}

/** A share in percent, three digits. */
export function percent(share: number): string {
  const value = 100 * share;
  if (value === 0) return "0 %";
  return value < 0.1
    ? `${value.toPrecision(1)} %`
    : `${value.toPrecision(value >= 99.95 ? 4 : 3).replace(/\.0+$/, "")} %`;
}

/** Bytes with a binary unit. */
export function bytesText(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB"];
  let value = n;
  let unit = 0;
  while (value >= 1000 && unit < 3) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toPrecision(3)} ${units[unit]}`;
}

/** Value of a style variable of the page, for canvases. */
export function styleOf(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name)
    .trim();
}

/** A colour `#rrggbb` as three numbers. */
export function channels(colour: string): [number, number, number] {
  const n = parseInt(colour.slice(1), 16);
  return [n >> 16, n >> 8 & 255, n & 255];
}

/** A labelled choice. */
export function selectBox(
  label: string,
  options: readonly (readonly [value: string, text: string])[],
  change: (value: string) => void,
): { box: HTMLLabelElement; select: HTMLSelectElement } {
  const select = make(
    "select",
    { change: () => change(select.value) },
    ...options.map(([value, text]) => make("option", { value }, text)),
  );
  return { box: make("label", {}, label, " ", select), select };
}

/** A labelled slider whose position is told in words. */
export function sliderBox(
  label: string,
  range: { min: number; max: number; value: number },
  words: (value: number) => string,
  change: (value: number) => void,
): { box: HTMLLabelElement; slider: HTMLInputElement } {
  const output = make("output", {}, words(range.value));
  const slider = make("input", {
    type: "range",
    ...range,
    "aria-valuetext": words(range.value),
    input: () => {
      const value = Number(slider.value);
      output.textContent = words(value);
      slider.setAttribute("aria-valuetext", words(value));
      change(value);
    },
  });
  return { box: make("label", {}, label, " ", slider, " ", output), slider };
}
