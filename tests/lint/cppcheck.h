/* What cppcheck cannot see of the libraries' headers. */
#define cJSON_ArrayForEach(element, array) for (element = (array)->child; element; element = element->next)
#define HASH_ITER(hh, head, element, next) for (element = head, next = head; element; element = next)
