// deno-lint-ignore-file no-console -- measured times are told
/**
 * The report's page in a real browser. Run by `deno task test:browser`; not found by `deno test` alone, as it needs
 * permission to run chromium.
 */
import { assert, assertEquals } from "@std/assert";
import { toFileUrl } from "@std/path";
import {
  collectSections,
  pageHtml,
  pageViewOf,
  summarise,
} from "../../eval/report/mod.ts";
import { packView, type ViewConfiguration } from "../../eval/view/mod.ts";
import { sampleFolder } from "../eval/sample_records.ts";
import { Browser, FOLDER, hasChromium, type Page } from "./chromium.ts";
import { sampleView, TOKENS } from "./sample_view.ts";

const SKIPPED = hasChromium() ? "" : " (SKIPPED: no chromium)";

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
type Check = (page: Page, browser: Browser) => Promise<void>;

function onPage(name: string, body: Check): void {
  CHECKS.push([name, body]);
}

Deno.test({
  name: `the page in Chromium${SKIPPED}`,
  ignore: SKIPPED !== "",
  fn: async (t) => {
    await using browser = await Browser.start();
    const path = `${FOLDER}/page.html`;
    Deno.writeTextFileSync(path, html);
    for (const [name, body] of CHECKS) {
      await t.step(name, async () => {
        const page = await browser.page(1280, 900);
        try {
          await page.open(toFileUrl(path).href);
          await body(page, browser);
          assertEquals(page.faults, []);
        } finally {
          await page.close();
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

/** Moves a slider of the explorer, as a hand does. */
function slide(label: string, value: number): string {
  return `(() => { const slider = [...document.querySelectorAll(".explorer label")].find((l) => l.textContent.startsWith("${label}")).querySelector("input"); slider.value = ${value}; slider.dispatchEvent(new Event("input")) })()`;
}

/** Names in the first column of the first table, top to bottom. */
const NAMES =
  `[...document.querySelector("table.sortable").tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].textContent)`;

onPage(
  "opens from disk, asks for nothing else and stays small",
  // deno-lint-ignore require-await -- the page was opened for it
  async (page) => {
    assertEquals(page.requests.length, 1, page.requests.join(" "));
    assert(page.requests[0]!.startsWith("file:///"));
    const size = new TextEncoder().encode(html).length;
    console.log(`      ${(size / 1e6).toFixed(2)} MB`);
    assert(size < 8e6, `${size} bytes`);
  },
);

onPage("sorts and filters its tables", async (page) => {
  const before = ["fullkv", "snapkv 16", "snapkv 32"];
  assertEquals(await page.value(NAMES), before);
  const head = "table.sortable th:nth-child(2)";
  await page.point(`${head} button`, true);
  assertEquals(
    await page.value(`document.querySelector("${head}").ariaSort`),
    "descending",
  );
  assertEquals(await page.value(NAMES), ["fullkv", "snapkv 32", "snapkv 16"]);
  await page.point(`${head} button`, true);
  assertEquals(await page.value(NAMES), ["snapkv 16", "snapkv 32", "fullkv"]);
  await page.value(`document.querySelector(".filter input").focus()`);
  await page.send("Input.insertText", { text: "snap 16" });
  assertEquals(await page.value(NAMES), ["snapkv 16"]);
  assertEquals(
    await page.value(`document.querySelector(".filter output").textContent`),
    "1 of 3 rows",
  );
});

onPage(
  "shows the numbers of a point under the pointer and under the keys",
  async (page) => {
    const hint = `document.querySelector(".hint").innerText`;
    await page.point(".series .point");
    assert(
      (await page.value(hint)).includes("snapkv 16\n0.0 %"),
      await page.value(hint),
    );
    await page.point("h1");
    await page.value(`document.querySelector(".chart svg").focus()`);
    await page.press("ArrowRight");
    await page.press("ArrowRight");
    assert(
      (await page.value(hint)).includes("snapkv 32"),
      await page.value(hint),
    );
    const spoken = `document.querySelector(".for-ears").textContent`;
    assert(
      (await page.value(spoken)).includes("91.7 %"),
      await page.value(spoken),
    );
    await page.value(
      `(() => { const s = document.querySelector(".heat-maps select"); s.value = "32"; s.dispatchEvent(new Event("change")) })()`,
    );
    assertEquals(
      await page.value(
        `[...document.querySelectorAll(".heat-maps")[0].querySelectorAll("figure")].filter((f) => !f.hidden).map((f) => f.querySelector("figcaption").innerText)`,
      ),
      ["fullkv 100 %", "snapkv 32 91.7 %"],
    );
    await page.point(".heat rect");
    assert(
      (await page.value(hint)).includes("depth 0 %"),
      await page.value(hint),
    );
  },
);

/** Whether what is out of sight has been painted as well. */
const PAINTED = `document.documentElement.dataset.painting === undefined`;

/** Shade and text of every token in every panel. */
const PANELS =
  `[...document.querySelectorAll(".text-panel")].map((p) => ({ name: p.querySelector("h4").textContent, hidden: p.hidden, prompt: p.querySelector(".prompt").textContent, shades: [...p.querySelectorAll(".text [data-i]")].map((s) => Number(/\\bk(\\d)/.exec(s.className)?.[1] ?? -1)), marked: p.querySelectorAll(".marked").length }))`;

onPage(
  "shades the text as the view says, for any layer, head and moment",
  async (page) => {
    // All six side by side.
    await page.value(
      `document.querySelectorAll(".shown input:not(:checked)").forEach((box) => box.click())`,
    );
    for (
      const [layer, head, step] of [[-1, -1, 0], [5, -1, 0], [5, 7, 3], [
        23,
        0,
        12,
      ], [-1, 2, 1]] as const
    ) {
      await page.value(slide("Layer", layer));
      await page.value(slide("KV head", head));
      await page.value(slide("Moment", step));
      await page.until(PAINTED);
      const panels = await page.value(PANELS);
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
  async (page) => {
    const info = `document.querySelector(".token-info").innerText`;
    assert((await page.value(info)).includes("Token 2,000 of 4,096"));
    await page.value(
      `document.querySelector(".text-panel:not([hidden]) .text").focus()`,
    );
    await page.press("ArrowRight");
    assert((await page.value(info)).includes("Token 2,001 of 4,096"));
    const one = view.configurations[1]!;
    const { counts, of } = countKept(one, 0, { layer: -1, head: -1 });
    const spoken = await page.value(
      `document.querySelector(".for-ears").textContent`,
    );
    assert(
      spoken.includes(`Method 1 keeps it in ${counts[2001]} of ${of} heads`),
      spoken,
    );
    await page.press("Home");
    assert((await page.value(info)).includes("Token 0 of 4,096"));
  },
);

onPage("maps attention as the view says", async (page) => {
  const canvas = `document.querySelector("canvas.attention")`;
  await page.value(`${canvas}.focus()`);
  const hint = `document.querySelector(".hint").innerText`;
  for (let i = 0; i < 3; i++) await page.press("ArrowRight");
  const text = await page.value(hint);
  assert(text.includes("queries 4,064 to 4,095, keys 96 to 127"), text);
  // Opaque up to the diagonal, nothing after it.
  const alpha = await page.value(
    `[...${canvas}.getContext("2d").getImageData(0, 5, 128, 1).data].filter((_, i) => i % 4 === 3)`,
  );
  assertEquals(alpha.indexOf(0), 6);
});

onPage("answers within 100 ms", async (page, browser) => {
  const repeats = 8;
  const time = async (action: (i: number) => string): Promise<number> => {
    let sum = 0;
    for (let i = 0; i < repeats; i++) {
      await page.until(PAINTED);
      const before = await browser.busy();
      // What is in sight has its new shades and places when this returns.
      await page.value(`(${action(i)}, document.body.offsetHeight)`);
      sum += await browser.busy() - before;
    }
    return sum / repeats;
  };
  await page.value(
    `document.querySelectorAll(".shown input:not(:checked)").forEach((box) => box.click())`,
  );
  const pick = (i: number) =>
    `(() => { const s = [...document.querySelectorAll(".attention-map label")].find((l) => l.textContent.startsWith("Layer")).querySelector("select"); s.selectedIndex = ${
      i % 3
    }; s.dispatchEvent(new Event("change")) })()`;
  const point = (i: number) =>
    `document.querySelectorAll(".text [data-i]")[${
      100 + i
    }].dispatchEvent(new MouseEvent("mousemove", { bubbles: true }))`;
  const times: { [what: string]: number } = {
    "another layer, six panels": await time((i) => slide("Layer", i - 1)),
    "another head, six panels": await time((i) => slide("KV head", i)),
    "another moment, six panels": await time((i) => slide("Moment", i + 1)),
    "another token": await time(point),
    "another attention map": await time(pick),
    "sorting": await time(() => `document.querySelector("th button").click()`),
  };
  for (const [what, ms] of Object.entries(times)) {
    console.log(`      ${what}: ${ms.toFixed(1)} ms`);
    assert(ms < 100, `${what} took ${ms} ms`);
  }
});

onPage(
  "names what it shows to those who do not see it, in readable colours",
  async (page) => {
    const nameless = await page.value(
      `[...document.querySelectorAll("input, select, button, canvas:not([aria-hidden]), svg[role]")].filter((e) => !(e.labels?.length || e.ariaLabel || e.getAttribute("aria-label") || e.textContent.trim())).map((e) => e.outerHTML.slice(0, 80))`,
    );
    assertEquals(nameless, []);
    assertEquals(await page.value(`document.querySelectorAll("h1").length`), 1);
    assertEquals(
      await page.value(
        `[...document.querySelectorAll("table.sortable, table.grid-table")].filter((t) => !t.caption).length`,
      ),
      0,
    );
    for (const scheme of ["light", "dark"] as const) {
      await page.media("screen", scheme);
      const contrast = await page.value(`(() => {
      const light = (name) => {
        const n = parseInt(getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1), 16);
        const [r, g, b] = [n >> 16, n >> 8 & 255, n & 255].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      return ["--ink", "--soft", "--gone", "--link", "--mark", "--c0", "--c1", "--c2", "--c3", "--c4", "--c5"].flatMap((ink) =>
        (ink === "--gone" ? ["--paper"] : ["--paper", "--panel"]).map((paper) => {
          const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
          return [ink + " on " + paper, (a + 0.05) / (b + 0.05)];
        })
      );
    })()`);
      for (const [what, ratio] of contrast) {
        // Curves need 3, text 4.5.
        const least = what.startsWith("--c") ? 3 : 4.5;
        assert(ratio >= least, `${scheme}: ${what} has ${ratio}`);
      }
    }
  },
);

onPage("prints whole texts and no controls", async (page) => {
  await page.media("print", "dark");
  const [controls, text, paper] = await page.value(
    `[getComputedStyle(document.querySelector(".controls")).display, getComputedStyle(document.querySelector(".text")).overflowY, getComputedStyle(document.body).backgroundColor]`,
  );
  assertEquals([controls, text, paper], [
    "none",
    "visible",
    "rgb(255, 255, 255)",
  ]);
});

onPage("fits wide and narrow windows in light and dark", async (_, browser) => {
  for (const width of [1280, 420]) {
    for (const scheme of ["light", "dark"] as const) {
      const page = await browser.page(width, 900, scheme);
      await page.open(toFileUrl(`${FOLDER}/page.html`).href);
      assertEquals(
        await page.value("document.documentElement.scrollWidth"),
        width,
        `${width} ${scheme}`,
      );
      // A legend is a line or two, not a picture of its own.
      const legend = await page.value(
        `document.querySelector(".legend").getBoundingClientRect().height`,
      );
      assert(legend < 100, `legend of ${legend}`);
      Deno.writeFileSync(
        `${FOLDER}/page_${width}_${scheme}.png`,
        await page.picture(),
      );
      assertEquals(page.faults, []);
    }
  }
});
