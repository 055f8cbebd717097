/** What the library asks of the system, read from its own symbol table. */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";

const LIBRARY = fromFileUrl(new URL("../../build/libkvf.so", import.meta.url));

/** Names of undefined dynamic symbols of a 64-bit little-endian ELF file. */
function importedSymbols(file: Uint8Array<ArrayBuffer>): string[] {
  const view = new DataView(file.buffer);
  const number = (at: number) => Number(view.getBigUint64(at, true));
  const table = number(0x28),
    size = view.getUint16(0x3a, true),
    count = view.getUint16(0x3c, true);
  const section = (i: number) => ({
    type: view.getUint32(table + i * size + 4, true),
    offset: number(table + i * size + 24),
    bytes: number(table + i * size + 32),
    link: view.getUint32(table + i * size + 40, true),
  });
  const names: string[] = [];
  for (let i = 0; i < count; i++) {
    const symbols = section(i);
    if (symbols.type !== 11) continue; // SHT_DYNSYM
    const strings = section(symbols.link);
    for (
      let at = symbols.offset;
      at < symbols.offset + symbols.bytes;
      at += 24
    ) {
      if (view.getUint16(at + 6, true) !== 0) continue; // defined here
      const start = strings.offset + view.getUint32(at, true);
      names.push(
        new TextDecoder().decode(file.subarray(start, file.indexOf(0, start))),
      );
    }
  }
  return names.filter((name) => name !== "");
}

Deno.test("the CPU library imports memory, mathematics and threads, and nothing that reaches files, sockets, processes or the environment", () => {
  const names = importedSymbols(Deno.readFileSync(LIBRARY));
  assert(names.includes("malloc"), "the symbol table was read");
  const allowed =
    /^(_ITM_|__cxa_finalize|__gmon_start__|__sched_cpucount|__stack_chk_fail|__tls_get_addr|aligned_alloc|posix_memalign|calloc|malloc|realloc|free|clock_gettime|(exp|log|sin|cos|acos|sincos|sqrt|pow|fmin|fmax)f?|madvise|mem(chr|cpy|set|move|cmp)|pthread_(cond|mutex|create|join)\w*|qsort|sched_getaffinity|v?snprintf|__v?snprintf_chk|__mem(cpy|set|move)_chk|sysinfo|str(len|cmp))$|^(_ITM_\w+)$/;
  assertEquals(names.filter((name) => !allowed.test(name)), []);
});
