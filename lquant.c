/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "lquant.h"

#include <stdio.h>

const char *lquant_version(void) { return LQ_VERSION; }

int main(void) {
    printf("lquant %s\n", lquant_version());
    return 0;
}
