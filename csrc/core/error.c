/* Messages go to the caller's buffer; between calls a thread remembers no more than what kind its last failure was of. */
#include <stdarg.h>
#include <stdio.h>

#include "core.h"

static _Thread_local int32_t last_status;

int32_t kv_fail(kv_err err, int32_t status, const char *format, ...) {
    if (err.text != NULL && err.cap > 0) {
        va_list list;
        va_start(list, format);
        vsnprintf(err.text, err.cap, format, list);
        va_end(list);
    }
    last_status = status;
    return status;
}

int32_t kvf_last_status(void) { return last_status; }

uint32_t kvf_abi_version(void) { return KVF_ABI_VERSION; }
