import { assert, assertEquals, assertThrows } from "@std/assert";
import { NativeError } from "../../ffi/mod.ts";
import type { GroupReduce, LayerContext } from "../../methods/types.ts";
import {
  assertClose,
  attention,
  openCache,
  openDevice,
  recordAll,
  SHAPE,
  tensors,
} from "./tiny.ts";

const TOKENS = 37;
const WINDOW = 5;

/** Runs `body` on layer 0 of a recorded sequence. */
function onLayer(
  body: (layer: LayerContext & Disposable) => void,
  granularity: "kv_head" | "query_head" = "kv_head",
): void {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence(granularity);
  recordAll(sequence, TOKENS, {
    windowQueries: WINDOW,
    columnMasses: ["all", { suffix: 3 }],
  });
  {
    using layer = sequence.layer(0);
    body(layer);
  }
  assertEquals(cache.ledger().objects, 0);
}

/** Probability that queries `first` to the end give to each key, per query head. */
function mass(first: number): number[][] {
  return Array.from({ length: SHAPE.queryHeads }, (_, head) => {
    const rows = attention(tensors(TOKENS), TOKENS, head).slice(first);
    return Array.from(
      { length: TOKENS },
      (_, j) => rows.reduce((sum, row) => sum + (row[j] ?? 0), 0),
    );
  });
}

/** Reduces pairs of query heads. */
function reduce(heads: number[][], how: GroupReduce): number[][] {
  return [0, 1].map((g) =>
    (heads[2 * g] ?? []).map((a, j) => {
      const b = heads[2 * g + 1]?.[j] ?? 0;
      return how === "max" ? Math.max(a, b) : (a + b) / (how === "sum" ? 1 : 2);
    })
  );
}

Deno.test("LayerContext states the facts", () => {
  onLayer((layer) => {
    assertEquals(
      [
        layer.layer,
        layer.layers,
        layer.length,
        layer.queryHeads,
        layer.kvHeads,
        layer.storedHeads,
        layer.groupSize,
        layer.headDim,
        layer.granularity,
      ],
      [0, 2, TOKENS, 4, 2, 2, 2, 8, "kv_head"],
    );
  });
  onLayer((layer) => assertEquals(layer.storedHeads, 4), "query_head");
});

Deno.test("LayerContext.observationScores() sums the window's probabilities", () => {
  const heads = mass(TOKENS - WINDOW);
  for (const groupReduce of ["mean", "max", "sum"] as const) {
    onLayer((layer) => {
      const expected = reduce(heads, groupReduce);
      const scores = layer.observationScores({ window: WINDOW, groupReduce });
      assertEquals([scores.heads, scores.rows], [2, TOKENS - WINDOW]);
      assertClose(
        scores.read(),
        expected.flatMap((row) => row.slice(0, TOKENS - WINDOW)),
      );
      const all = layer.observationScores({
        window: WINDOW,
        groupReduce,
        allRows: true,
        over: "mean",
      });
      assertClose(all.read(), expected.flat().map((x) => x / WINDOW));
    });
  }
});

Deno.test("LayerContext.observationScores() can reduce the group before the queries", () => {
  onLayer((layer) => {
    const heads = Array.from(
      { length: 4 },
      (_, h) => attention(tensors(TOKENS), TOKENS, h).slice(-WINDOW),
    );
    const expected = [0, 1].flatMap((g) =>
      Array.from(
        { length: TOKENS - WINDOW },
        (_, j) =>
          Array.from({ length: WINDOW }, (_, i) =>
            Math.max(
              heads[2 * g]?.[i]?.[j] ?? 0,
              heads[2 * g + 1]?.[i]?.[j] ?? 0,
            ))
            .reduce((a, b) => a + b, 0),
      )
    );
    const scores = layer.observationScores({
      window: WINDOW,
      groupReduce: "max",
      reduceFirst: true,
    });
    assertClose(scores.read(), expected);
  });
});

Deno.test("LayerContext.observationScores() counts the queries that give at least the average", () => {
  onLayer((layer) => {
    const first = TOKENS - WINDOW;
    const hits = Array.from({ length: SHAPE.queryHeads }, (_, head) => {
      const rows = attention(tensors(TOKENS), TOKENS, head).slice(first);
      return Array.from(
        { length: TOKENS },
        (_, j) =>
          rows.filter((row, i) => (row[j] ?? 0) >= 1 / (first + i + 1)).length,
      );
    });
    const options = {
      window: WINDOW,
      groupReduce: "sum",
      over: "hits",
      allRows: true,
    } as const;
    assertEquals(
      [...layer.observationScores(options).read()],
      reduce(hits, "sum").flat(),
    );
  });
});

Deno.test("LayerContext.observationScores() leaves query heads apart in query_head", () => {
  onLayer((layer) => {
    const scores = layer.observationScores({
      window: WINDOW,
      groupReduce: "mean",
    });
    assertClose(
      scores.read(),
      mass(TOKENS - WINDOW).flatMap((row) => row.slice(0, TOKENS - WINDOW)),
    );
  }, "query_head");
});

Deno.test("LayerContext.observationScores() takes a smaller window than recorded, no larger one", () => {
  onLayer((layer) => {
    const scores = layer.observationScores({ window: 2, groupReduce: "sum" });
    assertClose(
      scores.read(),
      reduce(mass(TOKENS - 2), "sum").flatMap((row) => row.slice(0, -2)),
    );
    assertThrows(
      () => layer.observationScores({ window: 6, groupReduce: "sum" }),
      RangeError,
      "at most the 5 queries that were recorded: window is 6",
    );
  });
});

Deno.test("LayerContext.columnMass() finds its query set", () => {
  onLayer((layer) => {
    assertClose(
      layer.columnMass("all", "mean").read(),
      reduce(mass(0), "mean").flat(),
    );
    assertClose(
      layer.columnMass({ suffix: 3 }, "max").read(),
      reduce(mass(TOKENS - 3), "max").flat(),
    );
    assertThrows(
      () => layer.columnMass({ suffix: 4 }, "max"),
      RangeError,
      '"suffix 4" is not among ["all", "suffix 3"]',
    );
  });
});

Deno.test("LayerContext.keyNorm() and valueNorm() are Euclidean", () => {
  onLayer((layer) => {
    const { k, v } = tensors(TOKENS);
    for (
      const [scores, rows] of [[layer.keyNorm(), k], [
        layer.valueNorm(),
        v,
      ]] as const
    ) {
      const expected = Array.from(
        { length: 2 * TOKENS },
        (_, r) => Math.hypot(...rows.subarray(8 * r, 8 * r + 8)),
      );
      assertClose(scores.read(), expected);
    }
  });
});

Deno.test("LayerContext.uniform() draws by seed", () => {
  onLayer((layer) => {
    const values = layer.uniform(1).read();
    assert(values.every((x) => x > 0 && x <= 1));
    assertEquals(layer.uniform(1).read(), values);
    assert(layer.uniform(2).read().some((x, i) => x !== values[i]));
  });
});

Deno.test("Scores.pool() pools with one stride, counting borders as 0 for the average", () => {
  onLayer((layer) => {
    const scores = layer.fromArray(Float32Array.of(3, 1, 2, 8, 0, 9), 2);
    assertEquals([...scores.pool("max", 3).read()], [3, 3, 2, 8, 9, 9]);
    assertClose(scores.pool("avg", 3).read(), [
      4 / 3,
      2,
      1,
      8 / 3,
      17 / 3,
      3,
    ]);
    assertEquals([...scores.pool("avg", 1).read()], [...scores.read()]);
    assertThrows(() => scores.pool("max", 2), RangeError, "width is 2");
  });
});

Deno.test("Scores.affine(), add(), multiply() and fill() work elementwise", () => {
  onLayer((layer) => {
    const a = layer.fromArray(Float32Array.of(1, 2, 3, 4), 2);
    const b = a.affine(2, -1);
    assertEquals([...b.read()], [1, 3, 5, 7]);
    assertEquals([...a.add(b).read()], [2, 5, 8, 11]);
    assertEquals([...a.multiply(b).read()], [1, 6, 15, 28]);
    assertEquals([...a.fill(1, 2, 9).read()], [1, 9, 3, 9]);
    assertEquals([...a.read()], [1, 2, 3, 4]);
    const c = layer.fromArray(Float32Array.of(1, 2), 2);
    assertThrows(() => a.add(c), RangeError, "[2, 2] and [2, 1]");
    assertThrows(() => a.fill(0, 3, 1), RangeError, "end is 3");
  });
});

Deno.test("Scores.topK() takes the highest, the lower row among equals, NaN last", () => {
  onLayer((layer) => {
    const scores = layer.fromArray(
      Float32Array.of(1, 5, 5, 5, 0, NaN, -2, 3, NaN, -Infinity),
      2,
    );
    const rows = (count: number | number[]) =>
      scores.topK(count).read().map((list) => [...list]);
    assertEquals(rows(2), [[1, 2], [1, 2]]);
    assertEquals(rows([3, 0]), [[1, 2, 3], []]);
    assertEquals(rows([5, 2]), [[0, 1, 2, 3, 4], [1, 2]]);
    assertThrows(() => scores.topK(6), RangeError, "counts[0] is 6");
    assertThrows(() => scores.topK([1]), RangeError, "2 elements");
  });
});

Deno.test("Scores.share() divides the highest of all heads together", () => {
  onLayer((layer) => {
    const scores = layer.fromArray(Float32Array.of(9, 8, 1, 2, 7, 3), 2);
    assertEquals([...scores.share(3)], [2, 1]);
    assertEquals([...scores.share(6)], [3, 3]);
  });
});

Deno.test("LayerContext.select() and retain() keep what they are told, and free the rest", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, 100);
  const before = cache.ledger();
  {
    using layer = sequence.layer(1);
    const kept = layer.select([[1, 50], [98]]);
    assertEquals(kept.read().map((list) => [...list]), [[1, 50], [98]]);
    layer.retain(kept, { first: 1, last: 3 });
    assertEquals(layer.length, 6);
  }
  assertEquals(sequence.rows(), [[100, 100], [6, 4]]);
  assertEquals([...sequence.positions(1, 0)], [0, 1, 50, 97, 98, 99]);
  assertEquals([...sequence.positions(1, 1)], [0, 97, 98, 99]);
  const { k } = tensors(100, 11);
  assertEquals(
    sequence.readRows(1, 0, "keys").subarray(16, 24),
    k.subarray(8 * 50, 8 * 51),
  );
  const after = cache.ledger();
  assertEquals([before.pages, after.pages], [16, 10]);
  assertEquals(after.ownedBytes, after.promisedBytes);
});

Deno.test("LayerContext.retain() applies one list to every head", () => {
  onLayer((layer) => {
    layer.retain(layer.select([[2, 3]]));
    assertEquals(layer.length, 2);
  });
});

Deno.test("LayerContext.select() refuses lists that do not ascend, fall outside or do not fit the heads", () => {
  onLayer((layer) => {
    assertThrows(() => layer.select([[2, 2]]), RangeError, "row 2 follows");
    assertThrows(() => layer.select([[TOKENS]]), RangeError, "rows[0][0]");
    assertThrows(
      () => layer.select([[0], [1], [2]]),
      RangeError,
      "there are 3",
    );
  });
});

Deno.test("objects end with the layer's scope even when a policy forgot them", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS);
  const layer = sequence.layer(0);
  const norm = layer.keyNorm();
  const kept = norm.topK(3);
  {
    using doubled = norm.affine(2, 0);
    assertEquals(doubled.rows, TOKENS);
    assertEquals(cache.ledger().objects, 3);
  }
  assertEquals(cache.ledger().objects, 2);
  layer[Symbol.dispose]();
  assertEquals(cache.ledger().objects, 0);
  assertThrows(() => norm.read(), TypeError, "it has been disposed");
  assertThrows(() => kept.read(), TypeError, "it has been disposed");
  norm[Symbol.dispose]();
});

Deno.test("Sequence.act() frees what a policy made, and checks its promise", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS);
  const policy = (rows: number) => ({
    afterPrefill: (layer: LayerContext) =>
      layer.retain(layer.keyNorm().topK(4)),
    maxRows: () => rows,
  });
  sequence.act(policy(8), 0);
  assertEquals(sequence.rows()[0], [4, 4]);
  assertThrows(
    () => sequence.act(policy(7), 1),
    RangeError,
    "layer 1 may hold 7 rows: it holds 8",
  );
  assertThrows(
    () =>
      sequence.act({
        afterPrefill: (layer) => {
          layer.keyNorm();
          throw new Error("policy failed");
        },
      }, 1),
    Error,
    "policy failed",
  );
  assertEquals(cache.ledger().objects, 0);
});

Deno.test("Sequence.forget() frees the observations", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS, { windowQueries: WINDOW });
  sequence.forget();
  using layer = sequence.layer(0);
  assertThrows(
    () => layer.observationScores({ window: 1, groupReduce: "sum" }),
    RangeError,
    "at most the 0 queries",
  );
});

Deno.test("a fork scores with its parent's observations", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS, { windowQueries: WINDOW });
  using fork = sequence.fork();
  using ours = sequence.layer(1);
  using theirs = fork.layer(1);
  const options = { window: WINDOW, groupReduce: "mean" } as const;
  const scores = ours.observationScores(options).read();
  theirs.retain(null, { first: 3 });
  assertEquals(ours.observationScores(options).read(), scores);
  assertEquals(fork.rows()[1], [3, 3]);
});

Deno.test("scores of heads of different lengths concern each head's own rows", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS);
  using layer = sequence.layer(0);
  const all = layer.keyNorm().read();
  layer.retain(layer.select([[1, 2, 5, 6], [3]]));
  assertEquals(layer.length, 4);
  const norms = layer.keyNorm();
  assertEquals([norms.heads, norms.rows], [2, 4]);
  const [long, short] = [[1, 2, 5, 6].map((row) => all[row]!), [
    all[TOKENS + 3]!,
  ]];
  const none = [-Infinity, -Infinity, -Infinity];
  assertEquals([...norms.read()], [...long, ...short, ...none]);
  // What lies behind a head's rows is never chosen, whatever the algebra makes of it.
  const upside = norms.affine(-1, 0);
  assertEquals(upside.topK(3).read().map((rows) => rows.length), [3, 1]);
  assertEquals([...upside.share(4)].reduce((a, b) => a + b), 4);
  assertEquals(upside.share(5), new Uint32Array([4, 1]));
  assertThrows(() => norms.fill(0, 2, 0), NativeError, "1 rows of head 1");
  assertEquals([...norms.fill(0, 1, 7).read()], [
    7,
    ...long.slice(1),
    7,
    ...none,
  ]);
  assertEquals([...norms.fillLast(2, 7).read()], [
    ...long.slice(0, 2),
    7,
    7,
    7,
    ...none,
  ]);
  const pooled = [...norms.pool("avg", 3).read()];
  assertClose(pooled.slice(4, 5), [short[0]! / 3]);
  assertClose(pooled.slice(0, 1), [(long[0]! + long[1]!) / 3]);
  assertThrows(() => layer.uniform(1), RangeError, "all heads must hold");
  layer.retain(norms.topK(2));
  assertEquals(sequence.rows()[0], [2, 1]);
});

Deno.test("a layer's scope may end last", () => {
  using probe = openDevice();
  const before = probe.liveHandles;
  {
    using device = openDevice();
    const cache = openCache(device);
    const sequence = cache.sequence("kv_head");
    recordAll(sequence, TOKENS);
    using layer = sequence.layer(0);
    const norm = layer.keyNorm();
    sequence[Symbol.dispose]();
    cache[Symbol.dispose]();
    assertThrows(() => layer.keyNorm(), TypeError, "Cannot use Sequence");
    assertThrows(() => norm.read(), TypeError, "Cannot use Cache");
  }
  assertEquals(probe.liveHandles, before);
});

Deno.test("a layer is refused after its scope", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS);
  let kept: LayerContext | undefined;
  sequence.act({ afterPrefill: (layer) => void (kept = layer) }, 0);
  assertThrows(() => kept?.keyNorm(), TypeError, "Cannot use LayerContext");
  assertThrows(() => kept?.retain(null), TypeError, "Cannot use LayerContext");
});

Deno.test("Sequence.attentionMap() means queries and adds rows up, block by block", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, TOKENS, { windowQueries: TOKENS });
  const block = 10, blocks = 4;
  const expected = Array.from({ length: SHAPE.queryHeads }, (_, head) => {
    const rows = attention(tensors(TOKENS), TOKENS, head);
    return Array.from({ length: blocks }, (_, b) => {
      const own = rows.slice(b * block, (b + 1) * block);
      return Array.from(
        { length: blocks },
        (_, r) =>
          own.flatMap((row) => row.slice(r * block, (r + 1) * block))
            .reduce((sum, p) => sum + p, 0) / own.length,
      );
    });
  });
  const map = sequence.attentionMap(0, block);
  assertClose(map, expected.flat(2));
  // Every block of queries gives away one probability in all.
  for (let at = 0; at < map.length; at += blocks) {
    const sum = map.subarray(at, at + blocks).reduce((a, b) => a + b);
    assertClose([sum], [1]);
  }
  using bare = cache.sequence("kv_head");
  recordAll(bare, TOKENS);
  assertThrows(() => bare.attentionMap(0, block), NativeError, "recorded");
  assertThrows(() => sequence.attentionMap(0, 0), RangeError, "block");
});
