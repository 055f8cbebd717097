// deno-lint-ignore-file no-console -- measured times are told
/**
 * The report's page in a real browser. Run by `deno task test:browser`; not found by `deno test` alone, as it needs
 * permission to run chromium.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { toFileUrl } from "@std/path";
import {
  collectSections,
  pageHtml,
  pageViewOf,
  summarise,
} from "../../eval/report/mod.ts";
import { packView, type ViewConfiguration } from "../../eval/view/mod.ts";
import { sampleFolder } from "../eval/sample_records.ts";
import type { Browser, Page } from "playwright-core";
import {
  FOLDER,
  openPage,
  processorClock,
  skipped,
  startBrowser,
  type Watched,
} from "./chromium.ts";
import { sampleView, TOKENS } from "./sample_view.ts";

const SKIPPED = await skipped();

const view = sampleView();
const html = SKIPPED ? "" : pageHtml({
  title: "Report",
  sections: collectSections(sampleFolder()).map((section) =>
    summarise(section, { minEffect: 0.05, pairs: true })
  ),
  views: [await pageViewOf(await packView(view))],
});

const CHECKS: [name: string, body: Check][] = [];

/** Looks at one thing; gets a page of its own that is open. */
type Check = (watched: Watched, browser: Browser) => Promise<void>;

function onPage(name: string, body: Check): void {
  CHECKS.push([name, body]);
}

const PATH = `${FOLDER}/page.html`;
const ADDRESS = toFileUrl(PATH).href;

Deno.test({
  name: `the page in Chromium${SKIPPED}`,
  ignore: SKIPPED !== "",
  fn: async (t) => {
    await using browser = await startBrowser();
    Deno.writeTextFileSync(PATH, html);
    for (const [name, body] of CHECKS) {
      await t.step(name, async () => {
        const watched = await openPage(browser, ADDRESS);
        try {
          await body(watched, browser);
          assertEquals(watched.faults, []);
        } finally {
          await watched.page.context().close();
        }
      });
    }
  },
});

/** How many of the chosen heads hold each position; written anew, bit by bit, as a check on the page's own counting. */
function countKept(
  { heads, snapshots }: ViewConfiguration,
  step: number,
  { layer, head }: { layer: number; head: number },
): { counts: number[]; of: number } {
  const { kept } = snapshots[step]!;
  const stride = kept.length / (view.model.layers * heads);
  const counts = Array<number>(8 * stride).fill(0);
  let of = 0;
  for (let l = 0; l < view.model.layers; l++) {
    for (let h = 0; h < heads; h++) {
      const kvHead = Math.floor(h * view.model.kvHeads / heads);
      if (layer >= 0 && l !== layer || head >= 0 && kvHead !== head) continue;
      of++;
      for (const i of counts.keys()) {
        const byte = kept[(l * heads + h) * stride + Math.floor(i / 8)]!;
        if (byte & 2 ** (i % 8)) counts[i] = counts[i]! + 1;
      }
    }
  }
  return { counts, of };
}

/** Moves a slider of the explorer. */
async function slide(page: Page, label: string, value: number): Promise<void> {
  await page.locator(".explorer label").filter({ hasText: label })
    .locator("input").fill(String(value));
}

/** Shows all configurations side by side. */
async function showAll(page: Page): Promise<void> {
  for (const box of await page.locator(".shown input").all()) await box.check();
}

/** Waits until what is out of sight has been painted as well. */
async function painted(page: Page): Promise<void> {
  await page.locator("html:not([data-painting])").waitFor({
    state: "attached",
  });
}

/** Names in the first column of the first table, top to bottom. */
function names(page: Page): Promise<string[]> {
  return page.locator("table.sortable").first()
    .locator("tbody tr:not([hidden]) > :first-child").allTextContents();
}

onPage(
  "opens from disk, asks for nothing else and stays small",
  // deno-lint-ignore require-await -- the page was opened for it
  async ({ requests }) => {
    assertEquals(requests, [ADDRESS]);
    const size = new TextEncoder().encode(html).length;
    console.log(`      ${(size / 1e6).toFixed(2)} MB`);
    assert(size < 8e6, `${size} bytes`);
  },
);

onPage("sorts and filters its tables", async ({ page }) => {
  assertEquals(await names(page), ["fullkv", "snapkv 16", "snapkv 32"]);
  const head = page.locator("table.sortable").first()
    .locator("th:nth-child(2)");
  await head.locator("button").click();
  assertEquals(await head.getAttribute("aria-sort"), "descending");
  assertEquals(await names(page), ["fullkv", "snapkv 32", "snapkv 16"]);
  await head.locator("button").click();
  assertEquals(await names(page), ["snapkv 16", "snapkv 32", "fullkv"]);
  const filter = page.locator(".filter").first();
  await filter.locator("input").pressSequentially("snap 16");
  assertEquals(await names(page), ["snapkv 16"]);
  assertEquals(await filter.locator("output").textContent(), "1 of 3 rows");
});

onPage(
  "shows the numbers of a point under the pointer and under the keys",
  async ({ page }) => {
    const hint = page.locator(".hint");
    await page.locator(".series .point").first().hover();
    assertStringIncludes(await hint.innerText(), "snapkv 16\n0.0 %");
    await page.locator("h1").hover();
    await page.locator(".chart svg").first().focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowRight");
    assertStringIncludes(await hint.innerText(), "snapkv 32");
    assertStringIncludes(
      (await page.locator(".for-ears").textContent())!,
      "91.7 %",
    );
    await page.locator(".heat-maps select").first().selectOption("32");
    assertEquals(
      await page.locator(".heat-maps").first()
        .locator("figure:not([hidden]) figcaption").allInnerTexts(),
      ["fullkv 100 %", "snapkv 32 91.7 %"],
    );
    await page.locator(".heat rect").first().hover();
    assertStringIncludes(await hint.innerText(), "depth 0 %");
  },
);

/** Shade and text of every token in every panel. */
function panelsOf(page: Page) {
  return page.evaluate(() =>
    [...document.querySelectorAll<HTMLElement>(".text-panel")].map((panel) => ({
      name: panel.querySelector("h4")?.textContent,
      hidden: panel.hidden,
      prompt: panel.querySelector(".prompt")?.textContent,
      shades: [...panel.querySelectorAll(".text [data-i]")].map((token) =>
        Number(/\bk(\d)/.exec(token.className)?.[1] ?? -1)
      ),
      marked: panel.querySelectorAll(".marked").length,
    }))
  );
}

onPage(
  "shades the text as the view says, for any layer, head and moment",
  async ({ page }) => {
    await showAll(page);
    for (
      const [layer, head, step] of [[-1, -1, 0], [5, -1, 0], [5, 7, 3], [
        23,
        0,
        12,
      ], [-1, 2, 1]] as const
    ) {
      await slide(page, "Layer", layer);
      await slide(page, "KV head", head);
      await slide(page, "Moment", step);
      await painted(page);
      const panels = await panelsOf(page);
      assertEquals(panels.length, 6);
      for (const [i, panel] of panels.entries()) {
        const one = view.configurations[i]!;
        assertEquals(panel.name, one.name);
        assertEquals(panel.hidden, false);
        assertEquals(panel.prompt, view.tokens.join(""));
        assertEquals(panel.marked, 16);
        const { counts, of } = countKept(one, step, { layer, head });
        const expected = counts.slice(0, panel.shades.length).map((n, at) =>
          at < TOKENS + step ? Math.ceil(8 * n / of) : 9
        );
        const wrong = expected.findIndex((shade, at) =>
          shade !== panel.shades[at]
        );
        assertEquals(
          [wrong, panel.shades[wrong], panel.shades.length],
          [-1, undefined, expected.length],
          `${one.name}, layer ${layer}, head ${head}, moment ${step}: ${
            expected[wrong]
          }`,
        );
      }
    }
  },
);

onPage(
  "tells about a token under the pointer and under the keys",
  async ({ page }) => {
    const info = page.locator(".token-info");
    assertStringIncludes(await info.innerText(), "Token 2,000 of 4,096");
    await page.locator(".text-panel:not([hidden]) .text").first().focus();
    await page.keyboard.press("ArrowRight");
    assertStringIncludes(await info.innerText(), "Token 2,001 of 4,096");
    const one = view.configurations[1]!;
    const { counts, of } = countKept(one, 0, { layer: -1, head: -1 });
    assertStringIncludes(
      (await page.locator(".for-ears").textContent())!,
      `Method 1 keeps it in ${counts[2001]} of ${of} heads`,
    );
    await page.keyboard.press("Home");
    assertStringIncludes(await info.innerText(), "Token 0 of 4,096");
  },
);

/** First and last token that can be seen in each panel that is shown. */
function inSight(page: Page): Promise<[first: number, last: number][]> {
  return page.evaluate(() =>
    [...document.querySelectorAll(".text-panel:not([hidden]) .text")].map(
      (frame) => {
        const { top, bottom } = frame.getBoundingClientRect();
        const seen = [...frame.querySelectorAll<HTMLElement>("[data-i]")]
          .filter((token) => {
            const box = token.getBoundingClientRect();
            return box.bottom > top + 2 && box.top < bottom - 2;
          }).map(({ dataset }) => Number(dataset.i));
        return [seen[0]!, seen.at(-1)!] as [number, number];
      },
    )
  );
}

onPage(
  "scrolls its texts side by side, from the first token to the last",
  async ({ page }) => {
    const last = TOKENS + view.configurations[1]!.generated.length - 1;
    const scrolled = async (
      by: number,
      done: (first: number, last: number) => boolean,
    ) => {
      await page.mouse.wheel(0, by);
      for (let tries = 0; tries < 100; tries++) {
        const seen = await inSight(page);
        if (seen.every((one) => done(...one))) return seen;
        await page.waitForTimeout(20);
      }
      throw new Error(`wheel ${by}: ${JSON.stringify(await inSight(page))}`);
    };
    const text = page.locator(".text-panel:not([hidden]) .text").nth(1);
    await text.hover();
    await scrolled(-1e6, (first) => first === 0);
    const seen = await scrolled(500, (first) => first > 20);
    assertEquals(seen.length, 3);
    await scrolled(1e6, (_, end) => end === last);
    // A panel that comes to light shows what the others show.
    await page.locator(".shown input").first().check();
    const all = await inSight(page);
    assertEquals(all.length, 4);
    for (const [, end] of all) assertEquals(end, last);
    // Keys bring their token into sight, here and in the others.
    await text.focus();
    await page.keyboard.press("Home");
    for (const [first] of await inSight(page)) assertEquals(first, 0);
    // What the browser itself scrolls to, a word that it found, moves all.
    await page.locator(".text-panel:not([hidden]) .text").nth(2)
      .locator("[data-i='3000']").scrollIntoViewIfNeeded();
    await scrolled(0, (first, end) => first <= 3000 && 3000 <= end);
    // Narrower frames hold longer texts.
    await page.setViewportSize({ width: 700, height: 900 });
    await text.hover();
    await scrolled(1e6, (_, end) => end === last);
  },
);

onPage("maps attention as the view says", async ({ page }) => {
  const canvas = page.locator("canvas.attention");
  await canvas.focus();
  for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowRight");
  assertStringIncludes(
    await page.locator(".hint").innerText(),
    "queries 4,064 to 4,095, keys 96 to 127",
  );
  // Opaque up to the diagonal, nothing after it.
  const alpha = await canvas.evaluate((element: HTMLCanvasElement) => [
    ...element.getContext("2d")!.getImageData(0, 5, 128, 1).data.filter((
      _,
      i,
    ) => i % 4 === 3),
  ]);
  assertEquals(alpha.indexOf(0), 6);
});

/** The middle of some numbers. */
function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}

/** Runs something on the page; resolves to the milliseconds until the next picture is on its way. */
function untilPicture(page: Page, code: string): Promise<number> {
  return page.evaluate(`(async () => {
    const start = performance.now();
    ${code};
    await new Promise((shown) => requestAnimationFrame(() => {
      const next = new MessageChannel();
      next.port1.onmessage = shown;
      next.port2.postMessage(null);
    }));
    return performance.now() - start;
  })()`);
}

/** Milliseconds that {@linkcode spin} keeps a processor that it has for itself. */
const SPIN_MS = 40;

/** Code that keeps a processor for {@linkcode SPIN_MS}, from the fastest of many short tries. */
async function spin(page: Page): Promise<string> {
  const turn = (turns: number) =>
    `let x = 1; for (let i = 0; i < ${turns}; i++) x = Math.imul(x, i | 1); globalThis.spun = x`;
  const turns = 1e6;
  const fastest: number = await page.evaluate(`(() => {
    const times = Array.from({ length: 100 }, () => {
      const start = performance.now();
      ${turn(turns)};
      return performance.now() - start;
    });
    return Math.min(...times);
  })()`);
  return turn(Math.round(turns * SPIN_MS / fastest));
}

onPage("answers within 100 ms", async ({ page }, browser) => {
  const busy = await processorClock(browser);
  const control = await spin(page);
  const time = async (code: (i: number) => string) => {
    const walls: number[] = [], busies: number[] = [], controls: number[] = [];
    for (let i = 0; i < 9; i++) {
      await painted(page);
      const before = await busy();
      walls.push(await untilPicture(page, code(i)));
      busies.push(await busy() - before);
      await painted(page);
      controls.push(await untilPicture(page, control));
    }
    // Where other programs have the processors, the clock tells of these: work of known length tells how much.
    const slowness = Math.max(1, median(controls) / (SPIN_MS + 1000 / 60));
    return { wall: median(walls), busy: median(busies), slowness };
  };
  await showAll(page);
  const move = (label: string, value: number) =>
    `const slider = [...document.querySelectorAll(".explorer label")].find((one) => one.textContent.startsWith("${label}")).querySelector("input"); slider.value = ${value}; slider.dispatchEvent(new Event("input"))`;
  const actions: { [what: string]: (i: number) => string } = {
    "another layer, six panels": (i) => move("Layer", i % 24),
    "another head, six panels": (i) => move("KV head", i % 8),
    "another moment, six panels": (i) => move("Moment", i % 13),
    "another token": (i) =>
      `document.querySelectorAll(".text [data-i]")[${
        100 + i
      }].dispatchEvent(new MouseEvent("mousemove", { bubbles: true }))`,
    "another attention map": (i) =>
      `const box = [...document.querySelectorAll(".attention-map label")].find((one) => one.textContent.startsWith("Layer")).querySelector("select"); box.selectedIndex = ${
        i % 3
      }; box.dispatchEvent(new Event("change"))`,
    "sorting": () => `document.querySelector("th button").click()`,
  };
  for (const [what, code] of Object.entries(actions)) {
    const { wall, busy, slowness } = await time(code);
    console.log(
      `      ${what}: ${wall.toFixed(1)} ms, ${
        busy.toFixed(1)
      } ms of the processor; known work takes ${
        slowness.toFixed(2)
      } times its time`,
    );
    assert(busy < 100, `${what} kept the processor for ${busy} ms`);
    assert(wall < 100 * slowness, `${what} took ${wall} ms`);
  }
});

onPage(
  "names what it shows to those who do not see it, in readable colours",
  async ({ page }) => {
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll<HTMLInputElement>(
        "input, select, button, canvas:not([aria-hidden]), svg[role]",
      )].filter((one) =>
        !(one.labels?.length || one.getAttribute("aria-label") ||
          one.textContent?.trim())
      ).map((one) => one.outerHTML.slice(0, 80))
    );
    assertEquals(nameless, []);
    assertEquals(await page.locator("h1").count(), 1);
    assertEquals(
      await page.locator(
        ":is(table.sortable, table.grid-table):not(:has(caption))",
      ).count(),
      0,
    );
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      const contrast = await page.evaluate(() => {
        const light = (name: string): number => {
          const colour = getComputedStyle(document.documentElement)
            .getPropertyValue(name).trim();
          const n = parseInt(colour.slice(1), 16);
          const [r, g, b] = [n >> 16, n >> 8 & 255, n & 255]
            .map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .map((c, i) => c * [0.2126, 0.7152, 0.0722][i]!);
          return r! + g! + b!;
        };
        const inks = ["--ink", "--soft", "--gone", "--link", "--mark"];
        const curves = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];
        return [...inks, ...curves].flatMap((ink) =>
          (ink === "--gone" ? ["--paper"] : ["--paper", "--panel"]).map(
            (paper) => {
              const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
              return {
                what: `${ink} on ${paper}`,
                ratio: (a! + 0.05) / (b! + 0.05),
                // Curves need 3, text 4.5.
                least: curves.includes(ink) ? 3 : 4.5,
              };
            },
          )
        );
      });
      for (const { what, ratio, least } of contrast) {
        assert(ratio >= least, `${colorScheme}: ${what} has ${ratio}`);
      }
    }
  },
);

onPage("prints whole texts and no controls", async ({ page }) => {
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  const style = (selector: string, name: string) =>
    page.locator(selector).first().evaluate(
      (element, name) => getComputedStyle(element).getPropertyValue(name),
      name,
    );
  assertEquals(await style(".controls", "display"), "none");
  for (const part of [".text", ".in-sight"]) {
    assertEquals(await style(part, "overflow-y"), "visible");
  }
  const [, last] = (await inSight(page))[0]!;
  assertEquals(last, TOKENS + view.configurations[1]!.generated.length - 1);
  assertEquals(await style("body", "background-color"), "rgb(255, 255, 255)");
});

onPage(
  "fits wide and narrow windows in light and dark",
  async (_, browser) => {
    for (const width of [1280, 420]) {
      for (const colorScheme of ["light", "dark"] as const) {
        const { page, faults } = await openPage(browser, ADDRESS, {
          viewport: { width, height: 900 },
          colorScheme,
        });
        assertEquals(
          await page.evaluate(() => document.documentElement.scrollWidth),
          width,
          `${width} ${colorScheme}`,
        );
        // A legend is a line or two, not a picture of its own.
        const legend = await page.locator(".legend").first().boundingBox();
        assert(legend!.height < 100, `legend of ${legend!.height}`);
        Deno.writeFileSync(
          `${FOLDER}/page_${width}_${colorScheme}.png`,
          await page.screenshot({ fullPage: true }),
        );
        assertEquals(faults, []);
        await page.context().close();
      }
    }
  },
);
