# Fits of lme4 and ordinal on the CSV files that lme4_reference.py wrote to a folder; writes one JSON file.
# Usage: Rscript lme4.R FOLDER OUTPUT.json
suppressMessages({library(lme4); library(ordinal); library(jsonlite)})
args <- commandArgs(trailingOnly = TRUE)
folder <- args[1]

read <- function(name, factors) {
  frame <- read.csv(file.path(folder, paste0(name, ".csv")), check.names = FALSE,
                    na.strings = character(0))
  # Sorting labels as text or as numbers, but as Python does, so that the groups come in the same order.
  for (f in factors) frame[[f]] <- factor(frame[[f]], levels = sort(unique(frame[[f]]), method = "radix"))
  frame
}
named <- function(values) as.list(values)

# Bambi names an effect "term|group", without the level of a two-level factor: urban|district.
term <- function(name) gsub("`|\\[.*\\]", "", ifelse(name == "(Intercept)", "1", name))
fixed_name <- function(name) gsub("`", "", ifelse(name == "(Intercept)", "Intercept", name))

describe <- function(fit, formula, data, seconds, keep = 8, effects = TRUE, note = NULL) {
  table <- coef(summary(fit))
  out <- list(formula = formula, data = data, method = NULL, n = nobs(fit),
              groups = as.list(sapply(getME(fit, "flist"), nlevels)))
  out$method <- if (isLMM(fit)) (if (isREML(fit)) "REML" else "ML") else
    paste0("ML, nAGQ=", fit@devcomp$dims[["nAGQ"]])
  if (!is.null(note)) out$note <- note
  parameters <- list()
  for (i in seq_len(nrow(table)))
    parameters[[fixed_name(rownames(table)[i])]] <- list(estimate = table[i, 1], se = table[i, 2])
  components <- VarCorr(fit)
  for (g in names(components)) {
    group <- sub("\\.[0-9]+$", "", g)
    sds <- attr(components[[g]], "stddev")
    for (i in seq_along(sds))
      parameters[[paste0(term(names(sds)[i]), "|", group, "_sigma")]] <- list(estimate = sds[[i]])
    if (length(sds) > 1)
      parameters[[paste0(group, "_corr")]] <- list(estimate = attr(components[[g]], "correlation")[1, 2])
  }
  if (isLMM(fit)) parameters[["sigma"]] <- list(estimate = sigma(fit))
  out$parameters <- parameters
  out$logLik <- as.numeric(logLik(fit))
  if (isLMM(fit) && isREML(fit)) out$logLik_ml <- as.numeric(logLik(refitML(fit)))
  out$singular <- isSingular(fit)
  messages <- fit@optinfo$conv$lme4$messages
  if (length(messages)) out$messages <- messages
  if (effects) {
    modes <- ranef(fit, condVar = TRUE)
    for (g in names(modes)) {
      variance <- attr(modes[[g]], "postVar")
      # Terms of one group that are written apart come as a list of arrays.
      if (!is.list(variance)) variance <- list(variance)
      sds <- do.call(cbind, lapply(variance, function(v) sapply(seq_len(dim(v)[1]), function(j) sqrt(v[j, j, ]))))
      rows <- seq_len(min(keep, nrow(modes[[g]])))
      for (k in seq_along(names(modes[[g]])))
        out$effects[[paste0(term(names(modes[[g]])[k]), "|", g)]] <-
          list(group = rownames(modes[[g]])[rows], mode = modes[[g]][rows, k], sd = sds[rows, k])
    }
  }
  out$seconds <- round(seconds, 1)
  out
}

fits <- list()
run <- function(name, data, formula, fit, ...) {
  seconds <- system.time(value <- fit())[["elapsed"]]
  fits[[name]] <<- describe(value, formula, data, seconds, ...)
  message(name, " ", round(seconds, 1), " s")
}

con <- read("contraception", "district")
run("contraception_intercept", "contraception", "use ~ age + urban + livch + (1 | district)", function()
  glmer(use ~ age + `urban[Y]` + `livch[1]` + `livch[2]` + `livch[3+]` + (1 | district), con, binomial))
run("contraception_intercept_agq", "contraception", "use ~ age + urban + livch + (1 | district)", function()
  glmer(use ~ age + `urban[Y]` + `livch[1]` + `livch[2]` + `livch[3+]` + (1 | district), con, binomial, nAGQ = 25),
  note = "the same by adaptive quadrature; its logLik has another constant")
run("contraception_slope", "contraception", "use ~ age + urban + livch + (1 + urban | district)", function()
  glmer(use ~ age + `urban[Y]` + `livch[1]` + `livch[2]` + `livch[3+]` + (1 + `urban[Y]` | district), con, binomial,
        control = glmerControl(optimizer = "bobyqa")))
run("contraception_slope_uncorrelated", "contraception", "use ~ age + urban + livch + (1 + urban || district)",
  function() glmer(use ~ age + `urban[Y]` + `livch[1]` + `livch[2]` + `livch[3+]` + (1 | district) +
                     (0 + `urban[Y]` | district), con, binomial, control = glmerControl(optimizer = "bobyqa")))

sleep <- read("sleepstudy", "Subject")
run("sleepstudy", "sleepstudy", "Reaction ~ Days + (1 + Days | Subject)", function()
  lmer(Reaction ~ Days + (1 + Days | Subject), sleep), keep = 18)
run("sleepstudy_uncorrelated", "sleepstudy", "Reaction ~ Days + (1 + Days || Subject)", function()
  lmer(Reaction ~ Days + (1 + Days || Subject), sleep), keep = 18)

hsb <- read("hsb82", "school")
run("hsb82_intercept", "hsb82", "mAch ~ meanses + cses + sector + (1 | school)", function()
  lmer(mAch ~ meanses + cses + `sector[Catholic]` + (1 | school), hsb))
run("hsb82", "hsb82", "mAch ~ meanses + cses + sector + (1 + cses | school)", function()
  lmer(mAch ~ meanses + cses + `sector[Catholic]` + (1 + cses | school), hsb))

herds <- read("cbpp", "herd")
run("cbpp", "cbpp", "p(incidence, size) ~ period + (1 | herd)", function()
  glmer(cbind(incidence, size - incidence) ~ `period[2]` + `period[3]` + `period[4]` + (1 | herd), herds, binomial),
  keep = 15)
run("cbpp_agq", "cbpp", "p(incidence, size) ~ period + (1 | herd)", function()
  glmer(cbind(incidence, size - incidence) ~ `period[2]` + `period[3]` + `period[4]` + (1 | herd), herds, binomial,
        nAGQ = 25), keep = 15, note = "the same by adaptive quadrature; its logLik has another constant")

run("penicillin", "penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)", function()
  lmer(diameter ~ 1 + (1 | plate) + (1 | sample), read("penicillin", c("plate", "sample"))), keep = 24)
run("pastes", "pastes", "strength ~ 1 + (1 | batch / cask)", function()
  lmer(strength ~ 1 + (1 | batch) + (1 | `batch:cask`), read("pastes", c("batch", "batch:cask"))), keep = 30)

ticks <- read("grouseticks", c("INDEX", "BROOD", "LOCATION"))
run("grouseticks", "grouseticks", "TICKS ~ YEAR + scale(cHEIGHT) + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)",
  function() glmer(TICKS ~ `YEAR[96]` + `YEAR[97]` + `scale(cHEIGHT)` + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION),
                   ticks, poisson, control = glmerControl(optimizer = "bobyqa", optCtrl = list(maxfun = 1e5))))

inst <- read("insteval", c("s", "d"))
run("insteval_lecturers", "insteval", "y ~ service + (1 | d)", function() lmer(y ~ service + (1 | d), inst))
run("insteval", "insteval", "y ~ service + (1 | s) + (1 | d)", function()
  lmer(y ~ service + (1 | s) + (1 | d), inst))

wine <- read("wine", "judge")
wine$rating <- factor(wine$rating, ordered = TRUE)
seconds <- system.time(fit <- clmm(rating ~ `temp[warm]` + `contact[yes]` + (1 | judge), wine, nAGQ = 10))[["elapsed"]]
table <- coef(summary(fit))
parameters <- list()
for (i in seq_len(nrow(table))) {
  name <- fixed_name(rownames(table)[i])
  if (i <= 4) name <- paste0("threshold[", i - 1, "]")
  parameters[[name]] <- list(estimate = table[i, 1], se = table[i, 2])
}
parameters[["1|judge_sigma"]] <- list(estimate = attr(VarCorr(fit)$judge, "stddev")[[1]])
fits[["wine"]] <- list(formula = "rating ~ temp + contact + (1 | judge)", data = "wine", method = "ML, clmm, nAGQ=10",
  note = "logit P(rating <= k) = threshold[k] - eta; columns not centred",
  n = nrow(wine), groups = list(judge = nlevels(wine$judge)), parameters = parameters,
  logLik = as.numeric(logLik(fit)),
  effects = list(`1|judge` = list(group = levels(wine$judge), mode = as.numeric(fit$ranef),
                                  sd = sqrt(as.numeric(fit$condVar)))), seconds = round(seconds, 1))

meta <- list(made = "2026-11-23", scripts = "lme4_reference.py, lme4.R", R = R.version.string,
             lme4 = as.character(packageVersion("lme4")), ordinal = as.character(packageVersion("ordinal")),
             effects = "conditional modes of the first groups, in sorted order; sd is the conditional sd at the estimates")
write(toJSON(list(meta = meta, fits = fits), auto_unbox = TRUE, digits = NA, null = "null"), args[2])
