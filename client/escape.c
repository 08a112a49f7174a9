#include "client/escape.h"
void escape_note_frame(struct stack *k, size_t at, size_t end, void *caller) { (void)k,(void)at,(void)end,(void)caller; }
void escape_check_pop(struct stack *k, size_t frame, void *caller) { (void)k,(void)frame,(void)caller; }
