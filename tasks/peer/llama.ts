/**
 * Drives llama.cpp through its C library, as the npm package `@node-llama-cpp/linux-x64` ships it.
 *
 * The parameter structs are passed by value and change from release to release. They are taken as the library fills them
 * in and only fields that can be told by their default values are changed; a layout that is not recognised is refused.
 *
 * @module
 */

/** Words of the structs, generously: what follows the real fields is never read. */
const PARAMS = { struct: Array<"u64">(32).fill("u64") } as const;
const BATCH = { struct: Array<"u64">(7).fill("u64") } as const;

const SYMBOLS = {
  "llama_backend_init": { parameters: [], result: "void" },
  "llama_model_default_params": { parameters: [], result: PARAMS },
  "llama_context_default_params": { parameters: [], result: PARAMS },
  "llama_model_load_from_file": {
    parameters: ["buffer", PARAMS],
    result: "pointer",
  },
  "llama_model_free": { parameters: ["pointer"], result: "void" },
  "llama_init_from_model": {
    parameters: ["pointer", PARAMS],
    result: "pointer",
  },
  "llama_free": { parameters: ["pointer"], result: "void" },
  "llama_n_ctx": { parameters: ["pointer"], result: "u32" },
  "llama_n_batch": { parameters: ["pointer"], result: "u32" },
  "llama_set_n_threads": {
    parameters: ["pointer", "i32", "i32"],
    result: "void",
  },
  "llama_n_threads": { parameters: ["pointer"], result: "i32" },
  "llama_batch_get_one": { parameters: ["buffer", "i32"], result: BATCH },
  "llama_decode": { parameters: ["pointer", BATCH], result: "i32" },
  "llama_synchronize": { parameters: ["pointer"], result: "void" },
  "llama_get_memory": { parameters: ["pointer"], result: "pointer" },
  "llama_memory_seq_rm": {
    parameters: ["pointer", "i32", "i32", "i32"],
    result: "bool",
  },
} as const;

const BACKEND_SYMBOLS = {
  "ggml_backend_load_all_from_path": {
    parameters: ["buffer"],
    result: "void",
  },
  "ggml_backend_load": { parameters: ["buffer"], result: "pointer" },
} as const;

function cString(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${text}\0`);
}

/** The words of default context parameters that are changed. */
interface ContextFields {
  threads: number;
  flash: number;
}

/** Finds the fields by their defaults: 512, 2048, 512 at the start; two thread counts; a run of four -1, flash the last. */
function contextFields(words: Int32Array): ContextFields {
  const flash = words.findIndex((_, i) =>
    i >= 3 && [0, 1, 2, 3].every((k) => words[i - k] === -1)
  );
  const threads = words.findIndex((word, i) =>
    i > 2 && i < flash && word > 0 && word === words[i + 1]
  );
  if (
    words[0] !== 512 || words[1] !== 2048 || words[2] !== 512 || flash < 0 ||
    threads < 0
  ) {
    throw new TypeError(
      `Cannot set up llama.cpp as its context parameters must have a known layout: they begin with ${
        words.subarray(0, 16).join(", ")
      }`,
    );
  }
  return { threads, flash };
}

/** The C library, with one model loaded. */
export class Llama implements Disposable {
  #library: Deno.DynamicLibrary<typeof SYMBOLS>;
  #backends: Deno.DynamicLibrary<typeof BACKEND_SYMBOLS>;
  #model: Deno.PointerValue;

  /**
   * @param folder the folder of the shared libraries
   * @param gguf model file
   * @param backend file name of the CPU library in `folder`; llama.cpp's own choice where missing
   */
  constructor(folder: string, gguf: string, backend?: string) {
    const file = (prefix: string) => {
      const names = [...Deno.readDirSync(folder)].map(({ name }) => name);
      const name = names.find((name) =>
        name.startsWith(prefix) && name.endsWith(".so") &&
        !name.includes("-common")
      );
      if (name === undefined) {
        throw new TypeError(
          `Cannot open llama.cpp as its folder must hold ${prefix}*.so: folder is "${folder}"`,
        );
      }
      return `${folder}/${name}`;
    };
    this.#library = Deno.dlopen(file("libllama."), SYMBOLS);
    this.#backends = Deno.dlopen(file("libggml."), BACKEND_SYMBOLS);
    const { symbols } = this.#library;
    if (backend === undefined) {
      this.#backends.symbols.ggml_backend_load_all_from_path(cString(folder));
    } else if (
      this.#backends.symbols.ggml_backend_load(
        cString(`${folder}/${backend}`),
      ) === null
    ) {
      throw new TypeError(
        `Cannot open llama.cpp as its CPU library must load: it is "${backend}"`,
      );
    }
    symbols.llama_backend_init();
    this.#model = symbols.llama_model_load_from_file(
      cString(gguf),
      symbols.llama_model_default_params(),
    );
    if (this.#model === null) {
      throw new TypeError(
        `Cannot open llama.cpp's model as it must load: file is "${gguf}"`,
      );
    }
  }

  /** A context; `flash` switches flash attention. */
  context(
    { length, threads, flash }: {
      length: number;
      threads: number;
      flash: boolean;
    },
  ): LlamaContext {
    const { symbols } = this.#library;
    const params = symbols.llama_context_default_params();
    const words = new Int32Array(params.buffer);
    const fields = contextFields(words);
    words[0] = length;
    words[1] = length;
    words[fields.threads] = threads;
    words[fields.threads + 1] = threads;
    words[fields.flash] = flash ? 1 : 0;
    const context = symbols.llama_init_from_model(this.#model, params);
    if (context === null || symbols.llama_n_ctx(context) < length) {
      throw new TypeError(
        `Cannot open llama.cpp's context as ${length} tokens must fit`,
      );
    }
    symbols.llama_set_n_threads(context, threads, threads);
    if (
      symbols.llama_n_threads(context) !== threads ||
      symbols.llama_n_batch(context) < length
    ) {
      throw new TypeError(
        `Cannot open llama.cpp's context as it must take ${threads} threads and batches of ${length}: it has ${
          symbols.llama_n_threads(context)
        } and ${symbols.llama_n_batch(context)}`,
      );
    }
    return new LlamaContext(this.#library, context);
  }

  [Symbol.dispose](): void {
    this.#library.symbols.llama_model_free(this.#model);
    this.#library.close();
    this.#backends.close();
  }
}

/** One sequence of llama.cpp. */
export class LlamaContext implements Disposable {
  #library: Deno.DynamicLibrary<typeof SYMBOLS>;
  #context: Deno.PointerValue;

  /** Made by {@linkcode Llama.context}. */
  constructor(
    library: Deno.DynamicLibrary<typeof SYMBOLS>,
    context: Deno.PointerValue,
  ) {
    this.#library = library;
    this.#context = context;
  }

  /** Runs tokens behind what is in the cache. */
  run(tokens: readonly number[]): void {
    const { symbols } = this.#library;
    const ids = Int32Array.from(tokens);
    const batch = symbols.llama_batch_get_one(ids, ids.length);
    const status = symbols.llama_decode(this.#context, batch);
    symbols.llama_synchronize(this.#context);
    if (status !== 0) {
      throw new TypeError(
        `Cannot run llama.cpp as llama_decode must return 0: it returned ${status}`,
      );
    }
  }

  /** Drops everything from position `length` on. */
  cut(length: number): void {
    const { symbols } = this.#library;
    const memory = symbols.llama_get_memory(this.#context);
    if (!symbols.llama_memory_seq_rm(memory, 0, length, -1)) {
      throw new TypeError(
        `Cannot cut llama.cpp's cache as position ${length} must be removable`,
      );
    }
  }

  [Symbol.dispose](): void {
    this.#library.symbols.llama_free(this.#context);
  }
}
