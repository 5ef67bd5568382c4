package model

import (
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// maxRegexProgram bounds the program that a regular expression compiles to, as
// regexProgram counts. A request that is made to be slow takes a time in
// proportion to it: a quarter of a second at most, with headers as long as they
// may be and an expression as bad as it can be.
const maxRegexProgram = 300

// regexProblem tells why a regular expression cannot be used; empty where it
// can. Envoy uses RE2, on bytes, and refuses all routes of a hostname for one
// expression that RE2 does. Go's own package takes the same syntax, except for
// what is beyond ASCII: it knows characters, and more names of Unicode classes.
// Neither is of use for paths and headers, so both are refused.
func regexProblem(pattern string) string {
	for i := range len(pattern) {
		if pattern[i] >= utf8.RuneSelf {
			return "holds a character that is not ASCII: encode it as it stands in the request"
		}
	}
	if strings.Contains(pattern, `\p`) || strings.Contains(pattern, `\P`) {
		return `holds a Unicode class (\p or \P): list the characters instead`
	}
	if strings.Contains(pattern, `\x{`) {
		return `holds a character by its number (\x{...}): write \xNN, up to \x7F`
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return fmt.Sprintf("is no regular expression of RE2's syntax: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return fmt.Sprintf("is no regular expression of RE2's syntax: %v", err)
	}
	if size := regexProgram(program); size > maxRegexProgram {
		return fmt.Sprintf("is too big: it comes to a program of %d instructions, and at most %d may be: write fewer or smaller repetitions", size, maxRegexProgram)
	}
	return ""
}

// regexProgram estimates from above how many instructions RE2 makes.
func regexProgram(program *syntax.Prog) int {
	// The loop that looks for a beginning, the end, and failing.
	size := 8
	for i := range program.Inst {
		instruction := &program.Inst[i]
		size++
		switch instruction.Op {
		case syntax.InstRune:
			size += (len(instruction.Rune) + 1) / 2 // pairs of first and last, or one alone
		case syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			size += 2
		default:
		}
	}
	return size
}
