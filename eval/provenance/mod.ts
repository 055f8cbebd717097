/**
 * Where results come from: sources, machine, permissions.
 *
 * @module
 */
export {
  shortCommit,
  SOURCES,
  type SourceState,
  sourceState,
} from "./source_state.ts";
export {
  type AskedPermissions,
  fileHash,
  grantedPermissions,
  type RunFacts,
  runMeta,
} from "./run_meta.ts";
