/* Messages go to the caller's buffer; nothing is remembered between calls. */
#include <stdarg.h>
#include <stdio.h>

#include "core.h"

int32_t kv_fail(kv_err err, int32_t status, const char *format, ...) {
    if (err.text != NULL && err.cap > 0) {
        va_list list;
        va_start(list, format);
        vsnprintf(err.text, err.cap, format, list);
        va_end(list);
    }
    return status;
}

uint32_t kvf_abi_version(void) { return KVF_ABI_VERSION; }
