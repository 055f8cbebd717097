/**
 * A headless Chromium under playwright-core, with as little as that needs: to start `/usr/bin/chromium` and to write
 * below `build/browser`. It asks for much of the environment, which reads as unset, and for the home folder's name.
 *
 * @module
 */
import { fromFileUrl } from "@std/path";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { CHILD_ENV } from "../../tasks/_child.ts";

/** Debian's Chromium. */
const CHROMIUM = "/usr/bin/chromium";

/** Where profiles, pages and pictures go. */
export const FOLDER = fromFileUrl(
  new URL("../../build/browser", import.meta.url),
);

/**
 * Why the tests must be skipped, for their names: Chromium is missing or does not start here. Empty where it does. Without
 * the permissions that starting needs, this throws.
 */
export async function skipped(): Promise<string> {
  try {
    const { success } = new Deno.Command(CHROMIUM, {
      args: ["--version"],
      env: CHILD_ENV,
    })
      .outputSync();
    if (!success) return " (SKIPPED: chromium does not start)";
    await using _browser = await startBrowser();
    return "";
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return " (SKIPPED: no chromium)";
    // What playwright says of a browser that ended at once; refusals by Deno are told in other words.
    const [told = ""] = (error as Error).message.split("\n");
    if (!/^browserType\.launch: .*has been closed/.test(told)) throw error;
    return ` (SKIPPED: chromium does not start: ${told})`;
  }
}

/** Starts a browser; the caller closes it. */
export async function startBrowser(): Promise<Browser> {
  Deno.mkdirSync(FOLDER, { recursive: true });
  Deno.env.set("TMPDIR", FOLDER);
  // Or it would look below /proc/sys whether this is Windows, which Deno allows only together with everything else.
  Deno.env.set("__IS_WSL_TEST__", "1");
  const { chromium } = await import("playwright-core");
  return chromium.launch({
    executablePath: CHROMIUM,
    env: {},
    // Chromium's own sandbox needs rights that containers do not have; the only page is ours.
    chromiumSandbox: false,
    args: ["--force-color-profile=srgb"],
    handleSIGINT: false,
    handleSIGTERM: false,
    handleSIGHUP: false,
  });
}

/** A page, what went wrong on it, and what it asked for. */
export interface Watched {
  /** The page. */
  page: Page;
  /** Errors of scripts, everything on the console, what did not load. */
  faults: string[];
  /** Addresses. */
  requests: string[];
}

/** Opens an address, and waits until the page's program says that it is ready; the caller closes the page's context. */
export async function openPage(
  browser: Browser,
  url: string,
  options: BrowserContextOptions = {},
): Promise<Watched> {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 900 },
    ...options,
  });
  const page = await context.newPage();
  const faults: string[] = [];
  const requests: string[] = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (said) => faults.push(`${said.type()}: ${said.text()}`));
  page.on("requestfailed", (request) => faults.push(`lost: ${request.url()}`));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  await page.locator("html[data-ready]").waitFor({ state: "attached" });
  return { page, faults, requests };
}

/** Tells the processor time that pages have taken so far, milliseconds; unlike a clock, it leaves out other programs. */
export async function processorClock(
  browser: Browser,
): Promise<() => Promise<number>> {
  const session = await browser.newBrowserCDPSession();
  return async () => {
    const { processInfo } = await session.send("SystemInfo.getProcessInfo");
    return processInfo.filter(({ type }) => type === "renderer")
      .reduce((sum, { cpuTime }) => sum + 1000 * cpuTime, 0);
  };
}
