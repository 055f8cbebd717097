/** The driver of Chromium. Run by `deno task test:browser`. */
import { assertEquals } from "@std/assert";
import { Browser, FOLDER, hasChromium } from "./chromium.ts";

const SKIPPED = hasChromium() ? "" : " (SKIPPED: no chromium)";

Deno.test({
  name: `Browser.start() opens pages that tell what goes wrong${SKIPPED}`,
  ignore: SKIPPED !== "",
  fn: async () => {
    Deno.mkdirSync(FOLDER, { recursive: true });
    const path = `${FOLDER}/faulty.html`;
    Deno.writeTextFileSync(
      path,
      "<script>document.documentElement.dataset.ready = ''; console.warn('so'); throw new Error('no')</script>",
    );
    await using browser = await Browser.start();
    const page = await browser.page(300, 200, "dark");
    await page.open(`file://${path}`);
    assertEquals(
      await page.value(
        "[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]",
      ),
      [300, true],
    );
    assertEquals(page.faults.length, 2);
    assertEquals(page.faults[0], "warning: so");
    assertEquals(page.faults[1]?.split("\n")[0], "Error: no");
  },
});
