/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* texts/calibration.txt.zst inside the binary (ELF). The build passes its path. */
extern const unsigned char lq_builtin_text_zst[], lq_builtin_text_zst_end[];

__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        ".global lq_builtin_text_zst\n"
        ".hidden lq_builtin_text_zst\n"
        "lq_builtin_text_zst:\n"
        ".incbin \"" LQ_BUILTIN_TEXT "\"\n"
        ".global lq_builtin_text_zst_end\n"
        ".hidden lq_builtin_text_zst_end\n"
        "lq_builtin_text_zst_end:\n"
        ".byte 0\n"
        ".popsection\n");
