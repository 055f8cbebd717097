/**
 * A headless Chromium, driven through its DevTools protocol: as much of it as the tests of the page need.
 *
 * A driver of our own, since the known ones look into /proc and read the whole environment, which Deno allows only
 * together with everything else. This one needs to run `chromium`, to talk to 127.0.0.1 and to write its profile.
 *
 * Protocol: https://chromedevtools.github.io/devtools-protocol/
 *
 * @module
 */
import { fromFileUrl } from "@std/path";

/** Parameters and results of the protocol. */
// deno-lint-ignore no-explicit-any -- the protocol's objects are checked by the tests that read them
type Message = any;

/** Where profiles, pages and pictures go. */
export const FOLDER = fromFileUrl(
  new URL("../../build/browser", import.meta.url),
);

/** Whether chromium is there; without the permission to run it, this throws. */
export function hasChromium(): boolean {
  try {
    return new Deno.Command("chromium", { args: ["--version"] })
      .outputSync().success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Waits for the line on which Chromium says where it listens. */
async function listeningAt(
  stderr: ReadableStream<Uint8Array>,
): Promise<string> {
  let text = "";
  const reader = stderr.pipeThrough(new TextDecoderStream() as TransformStream)
    .getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      throw new Error(`Cannot start chromium as it must listen: ${text}`);
    }
    text += value;
    const address = /DevTools listening on (ws:\S+)/.exec(text)?.[1];
    if (address === undefined) continue;
    // Nobody reads what else it has to say, and a full pipe would stop it.
    (async () => {
      while (!(await reader.read()).done);
    })();
    return address;
  }
}

/** A running browser. */
export class Browser implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #socket: WebSocket;
  readonly #profile: string;
  readonly #waiting = new Map<
    number,
    PromiseWithResolvers<Message>
  >();
  readonly #listeners: ((message: Message) => void)[] = [];
  #last = 0;

  private constructor(
    process: Deno.ChildProcess,
    socket: WebSocket,
    profile: string,
  ) {
    this.#process = process;
    this.#socket = socket;
    this.#profile = profile;
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      const waiting = this.#waiting.get(message.id);
      if (waiting === undefined) {
        for (const listener of this.#listeners) listener(message);
        return;
      }
      this.#waiting.delete(message.id);
      if (message.error) waiting.reject(new Error(message.error.message));
      else waiting.resolve(message.result);
    };
  }

  /** Starts a browser with a profile of its own. */
  static async start(): Promise<Browser> {
    Deno.mkdirSync(FOLDER, { recursive: true });
    const profile = Deno.makeTempDirSync({ dir: FOLDER });
    const process = new Deno.Command("chromium", {
      args: [
        "--headless=new",
        "--remote-debugging-port=0",
        `--user-data-dir=${profile}`,
        // Chromium's own sandbox needs rights that containers do not have; the only page is ours.
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
        "about:blank",
      ],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    try {
      const socket = new WebSocket(await listeningAt(process.stderr));
      const opened = Promise.withResolvers<void>();
      socket.onopen = () => opened.resolve();
      socket.onerror = () => opened.reject(new Error("Cannot reach chromium"));
      await opened.promise;
      return new Browser(process, socket, profile);
    } catch (error) {
      process.kill();
      await process.status;
      Deno.removeSync(profile, { recursive: true });
      throw error;
    }
  }

  /** Sends a command and waits for its result. */
  send(
    method: string,
    params: Message = {},
    sessionId?: string,
  ): Promise<Message> {
    const id = ++this.#last;
    const waiting = Promise.withResolvers<Message>();
    this.#waiting.set(id, waiting);
    this.#socket.send(JSON.stringify({ id, method, params, sessionId }));
    return waiting.promise;
  }

  /** Opens a page of a size in a colour scheme. */
  async page(
    width: number,
    height: number,
    scheme: "light" | "dark" = "light",
  ): Promise<Page> {
    const { targetId } = await this.send("Target.createTarget", {
      url: "about:blank",
    });
    const { sessionId } = await this.send("Target.attachToTarget", {
      targetId,
      flatten: true,
    });
    const page = new Page(this, sessionId, targetId);
    this.#listeners.push((message) => {
      if (message.sessionId === sessionId) page.hear(message);
    });
    for (const domain of ["Page", "Runtime", "Log", "Network"]) {
      await page.send(`${domain}.enable`);
    }
    await page.send("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: false,
    });
    await page.media("screen", scheme);
    return page;
  }

  /** Processor time that pages have taken so far, milliseconds; unlike a clock, it leaves out what other programs take. */
  async busy(): Promise<number> {
    const { processInfo } = await this.send("SystemInfo.getProcessInfo");
    return processInfo.filter(({ type }: Message) => type === "renderer")
      .reduce((sum: number, one: Message) => sum + 1000 * one.cpuTime, 0);
  }

  /** Ends the browser and removes its profile. */
  async [Symbol.asyncDispose](): Promise<void> {
    const closed = Promise.withResolvers<void>();
    this.#socket.onclose = () => closed.resolve();
    await this.send("Browser.close").catch(() => {});
    await this.#process.status;
    await closed.promise;
    Deno.removeSync(this.#profile, { recursive: true });
  }
}

/** One page. */
export class Page {
  readonly #browser: Browser;
  readonly #session: string;
  readonly #target: string;
  /** What went wrong on the page: errors of scripts, of the console, of loading. */
  readonly faults: string[] = [];
  /** Addresses that the page asked for. */
  readonly requests: string[] = [];

  /** Made by {@linkcode Browser.page}. */
  constructor(browser: Browser, session: string, target: string) {
    this.#browser = browser;
    this.#session = session;
    this.#target = target;
  }

  /** Notes what matters of an event. */
  hear({ method, params }: Message): void {
    if (method === "Runtime.exceptionThrown") {
      const { text, exception } = params.exceptionDetails;
      this.faults.push(exception?.description ?? text);
    } else if (method === "Log.entryAdded") {
      this.faults.push(`${params.entry.level}: ${params.entry.text}`);
    } else if (method === "Runtime.consoleAPICalled") {
      this.faults.push(
        `${params.type}: ${
          params.args.map((arg: Message) => arg.value ?? arg.description)
            .join(" ")
        }`,
      );
    } else if (method === "Network.requestWillBeSent") {
      this.requests.push(params.request.url);
    }
  }

  /** Sends a command to the page. */
  send(method: string, params: Message = {}): Promise<Message> {
    return this.#browser.send(method, params, this.#session);
  }

  /** Emulates a medium and a colour scheme. */
  async media(
    media: "screen" | "print",
    scheme: "light" | "dark",
  ): Promise<void> {
    await this.send("Emulation.setEmulatedMedia", {
      media,
      features: [{ name: "prefers-color-scheme", value: scheme }],
    });
  }

  /** Opens an address and waits until the page's program says that it is ready. */
  async open(url: string): Promise<void> {
    await this.send("Page.navigate", { url });
    await this.until("document.documentElement?.dataset.ready !== undefined");
  }

  /** Value of an expression, which may be a promise. */
  async value(expression: string): Promise<Message> {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression: `(async () => (${expression}))()`,
      awaitPromise: true,
      returnByValue: true,
    });
    if (exceptionDetails) {
      throw new Error(exceptionDetails.exception?.description ?? expression);
    }
    return result.value;
  }

  /** Waits until an expression holds. */
  async until(expression: string): Promise<void> {
    const end = performance.now() + 30_000;
    while (!await this.value(expression)) {
      if (performance.now() > end) {
        throw new Error(
          `Cannot go on as this must become true: ${expression}; faults: ${
            this.faults.join("; ")
          }`,
        );
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** Presses a key. */
  async press(key: string): Promise<void> {
    for (const type of ["keyDown", "keyUp"]) {
      await this.send("Input.dispatchKeyEvent", { type, key, code: key });
    }
  }

  /** Moves the pointer over the middle of an element, and clicks when asked. */
  async point(selector: string, click = false): Promise<void> {
    const { x, y } = await this.value(
      `(() => { const e = document.querySelector(${
        JSON.stringify(selector)
      }); e.scrollIntoView({ block: "center" }); const r = e.getBoundingClientRect(); return { x: r.x + r.width / 2, y: r.y + r.height / 2 } })()`,
    );
    await this.send("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
    if (!click) return;
    for (const type of ["mousePressed", "mouseReleased"]) {
      await this.send("Input.dispatchMouseEvent", {
        type,
        x,
        y,
        button: "left",
        clickCount: 1,
      });
    }
  }

  /** Closes the page. */
  async close(): Promise<void> {
    await this.#browser.send("Target.closeTarget", { targetId: this.#target });
  }

  /** A picture of the whole page, PNG. */
  async picture(): Promise<Uint8Array> {
    const { data } = await this.send("Page.captureScreenshot", {
      captureBeyondViewport: true,
    });
    return Uint8Array.fromBase64(data);
  }
}
