/**
 * The first module of the worker in which a script that is not trusted runs: it opens the library, gives up the
 * permission to load native code, and only then lets the script in.
 *
 * @module
 */
import { workerData } from "node:worker_threads";
import { confineNative } from "../ffi/_library.ts";

confineNative();
await import((workerData as { script: string }).script);
