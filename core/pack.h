/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The canonical bitstream: code k of a row occupies bits k*b .. k*b+b-1, least significant bit first. */
#ifndef LQ_PACK_H
#define LQ_PACK_H
#include <stddef.h>
#include <stdint.h>

/* get reads and put writes single codes of 1..32 bits; the row forms do n codes of at most 16 bits from code 0. */
uint32_t lq_code_get(const uint8_t *row, uint32_t bits, size_t k);
void lq_code_put(uint8_t *row, uint32_t bits, size_t k, uint32_t code); /* overwrites */
void lq_codes_unpack(const uint8_t *row, uint32_t bits, size_t n, uint16_t *codes);
void lq_codes_pack(uint8_t *row, uint32_t bits, size_t n, const uint16_t *codes); /* row zeroed first up to the last byte */
#endif
