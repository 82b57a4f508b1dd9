# Makes proc_values.json with R's pROC, as a reference for DeLong's variance, interval and paired test:
#   Rscript proc_values.R > proc_values.json      (Debian: r-cran-proc)
suppressPackageStartupMessages(library(pROC))
digits <- function(x) paste(sprintf("%.17g", x), collapse = ", ")
case <- function(name, labels, first, second) {
  a <- roc(labels, first, levels = c(0, 1), direction = "<", quiet = TRUE)
  b <- roc(labels, second, levels = c(0, 1), direction = "<", quiet = TRUE)
  test <- roc.test(a, b, method = "delong", paired = TRUE)
  sprintf(paste0('{"name": "%s", "labels": [%s], "first": [%s], "second": [%s], "auc": [%s], "variance": [%s], ',
                 '"plain_interval": [%s], "z": %s, "p": %s}'),
          name, paste(labels, collapse = ", "), digits(first), digits(second), digits(c(auc(a), auc(b))),
          digits(c(var(a, method = "delong"), var(b, method = "delong"))), digits(ci.auc(a, method = "delong")[c(1, 3)]),
          digits(test$statistic), digits(test$p.value))
}
set.seed(20240501)
draw <- function(zeros, ones, shift, decimals) {
  labels <- rep(c(0, 1), c(zeros, ones))
  first <- round(plogis(rnorm(zeros + ones) + shift * labels), decimals)
  second <- round(plogis(0.6 * qlogis(pmin(pmax(first, 0.01), 0.99)) + rnorm(zeros + ones) + 0.3 * labels), decimals)
  list(labels, first, second)
}
cases <- list(
  do.call(case, c("continuous", draw(40, 30, 1.2, 15))),
  do.call(case, c("ties", draw(60, 25, 0.8, 1))),
  do.call(case, c("few", draw(4, 4, 1.0, 15))),
  do.call(case, c("unbalanced", draw(120, 7, 2.0, 2))),
  do.call(case, c("worse than chance", draw(30, 30, -0.7, 15)))
)
cat("{\"made_by\": \"pROC ", as.character(packageVersion("pROC")), ", ", R.version.string, "\",\n \"cases\": [\n",
    paste(cases, collapse = ",\n"), "\n]}\n", sep = "")
