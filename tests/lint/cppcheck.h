/* What cppcheck cannot see of the libraries' headers. */
#define cJSON_ArrayForEach(element, array) for (element = (array)->child; element; element = element->next)
