import { assertEquals, assertThrows } from "@std/assert";
import {
  encodeObservation,
  mergeObservations,
  querySetKey,
} from "../../ffi/observe.ts";

Deno.test("mergeObservations takes the widest window and each query set once", () => {
  assertEquals(
    mergeObservations([
      { windowQueries: 8, columnMasses: ["all", { suffix: 4 }] },
      undefined,
      {},
      { windowQueries: 32, columnMasses: [{ suffix: 4 }, { prefix: 2 }] },
      { columnMasses: [{ ranges: [[0, 2]] }] },
    ]),
    { windowQueries: 32, columnMasses: ["all", { suffix: 4 }, { prefix: 2 }] },
  );
  assertEquals(mergeObservations([]), { windowQueries: 0, columnMasses: [] });
});

Deno.test("mergeObservations refuses more query sets than one prefill records", () => {
  const columnMasses = [1, 2, 3, 4, 5].map((suffix) => ({ suffix }));
  assertThrows(
    () => mergeObservations([{ columnMasses }]),
    RangeError,
    "there are 5: suffix 1; suffix 2",
  );
});

Deno.test("querySetKey is equal for equal sets", () => {
  assertEquals(
    querySetKey({ ranges: [[4, 6], [0, 2], [1, 5], [8, 8]] }),
    "0-6",
  );
  assertEquals(querySetKey({ prefix: 6 }), "0-6");
  assertThrows(() => querySetKey({ suffix: 0 }), RangeError, "suffix is 0");
  assertThrows(() => querySetKey({ ranges: [[3, 2]] }), RangeError, "end is 2");
});

Deno.test("encodeObservation cuts windows and ranges to the prompt", () => {
  const { observe, ranges } = encodeObservation({
    windowQueries: 32,
    columnMasses: ["all", { suffix: 20 }, { ranges: [[8, 30], [12, 14]] }],
  }, 10);
  const view = new DataView(observe.buffer);
  assertEquals([0, 4, 8, 12].map((at) => view.getUint32(at, true)), [
    16,
    10,
    3,
    3,
  ]);
  assertEquals([...ranges], [0, 0, 10, 1, 0, 10, 2, 8, 10]);
});
