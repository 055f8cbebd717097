/**
 * The one hint of the page: a small box beside the pointer or the chosen thing, read out when it was the keyboard. Part
 * of the page: it runs in the browser.
 *
 * @module
 */
import { make } from "./dom.ts";

const box = make("div", { class: "hint", role: "presentation" });
const voice = make("div", { class: "for-ears", "aria-live": "polite" });

/** Shows a hint beside a point of the window. */
export function showHint(
  lines: readonly string[],
  at: { x: number; y: number },
  spoken = false,
): void {
  if (!box.isConnected) document.body.append(box, voice);
  box.replaceChildren(...lines.map((line) => make("div", {}, line)));
  box.style.display = "block";
  const { width, height } = box.getBoundingClientRect();
  const right = at.x + 14 + width > innerWidth;
  const below = at.y + 14 + height > innerHeight;
  box.style.left = `${
    Math.max(4, right ? at.x - 10 - width : at.x + 14) + scrollX
  }px`;
  box.style.top = `${
    Math.max(4, below ? at.y - 10 - height : at.y + 14) + scrollY
  }px`;
  if (spoken) say(lines.join("; "));
}

/** Takes the hint away. */
export function hideHint(): void {
  box.style.display = "none";
}

/** Lets a screen reader say something. */
export function say(text: string): void {
  if (!voice.isConnected) document.body.append(box, voice);
  voice.textContent = text;
}

/** Middle of an element, for hints beside it. */
export function middleOf(element: Element): { x: number; y: number } {
  const { left, top, width, height } = element.getBoundingClientRect();
  return { x: left + width / 2, y: top + height / 2 };
}
