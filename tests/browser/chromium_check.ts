/** The browser of the page's test. Run by `deno task test:browser`. */
import { assertEquals } from "@std/assert";
import { toFileUrl } from "@std/path";
import { FOLDER, openPage, skipped, startBrowser } from "./chromium.ts";

const SKIPPED = await skipped();

Deno.test({
  name: `openPage() opens pages that tell what goes wrong${SKIPPED}`,
  ignore: SKIPPED !== "",
  fn: async () => {
    await using browser = await startBrowser();
    const path = `${FOLDER}/faulty.html`;
    Deno.writeTextFileSync(
      path,
      "<img src='missing.png'><script>document.documentElement.dataset.ready = ''; console.warn('so'); throw new Error('no')</script>",
    );
    const { page, faults, requests } = await openPage(
      browser,
      toFileUrl(path).href,
      { viewport: { width: 300, height: 200 }, colorScheme: "dark" },
    );
    assertEquals(
      await page.evaluate(() => [
        innerWidth,
        matchMedia("(prefers-color-scheme: dark)").matches,
      ]),
      [300, true],
    );
    assertEquals(requests.length, 2);
    assertEquals(faults.toSorted().map((fault) => fault.split("\n")[0]), [
      "Error: no",
      "error: Failed to load resource: net::ERR_FILE_NOT_FOUND",
      `lost: ${toFileUrl(FOLDER).href}/missing.png`,
      "warning: so",
    ]);
    await page.context().close();
  },
});
