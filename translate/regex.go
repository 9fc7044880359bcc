package translate

import (
	"fmt"
	"regexp/syntax"
	"strconv"
	"strings"
)

// Bounds of a regular expression: RE2 runs in linear time, but a small expression can become a large program.
const (
	maxRegexLength  = 1024
	maxRegexProgram = 8192 // weighted instructions; our proxies' bootstrap allows RE2 programs of 32,768
)

// checkRegex tells why Envoy should not see an expression. Go's syntax is RE2's; but Go counts a class of characters as one instruction, while RE2,
// which works on bytes, makes up to four for each of its ranges: so does the weight.
func checkRegex(expr string) error {
	if len(expr) > maxRegexLength {
		return fmt.Errorf("regular expression of %d bytes, the limit is %d: shorten it", len(expr), maxRegexLength)
	}
	parsed, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return fmt.Errorf("%w: correct it", err)
	}
	if err := checkEscapes(expr); err != nil {
		return err
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return fmt.Errorf("%w: correct it", err)
	}
	weight := 0
	for _, i := range prog.Inst {
		weight += 1 + 2*len(i.Rune)
	}
	if weight > maxRegexProgram {
		return fmt.Errorf("regular expression becomes a program of size %d, the limit is %d: use fewer repetitions and smaller classes", weight, maxRegexProgram)
	}
	return nil
}

// unicodeClasses are the \p{...} names that Envoy's RE2 has known for long. Go knows more: newer scripts, aliases, other spellings.
var unicodeClasses = func() map[string]bool {
	known := map[string]bool{}
	for _, name := range strings.Fields("Any L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps S Sc Sk Sm So Z Zl Zp Zs " +
		"C Cc Cf Co Cs Arabic Armenian Bengali Common Cyrillic Devanagari Georgian Greek Han Hangul Hebrew Hiragana Katakana Latin Thai") {
		known[name] = true
	}
	return known
}()

// checkEscapes refuses escapes that Go takes and Envoy's RE2 does not: Envoy reads expressions and values as bytes (Latin-1), so that a
// character above \xff cannot be meant by its number.
func checkEscapes(expr string) error {
	for i := 0; i+1 < len(expr); i++ {
		if expr[i] != '\\' {
			continue
		}
		i++
		braced := ""
		if rest := expr[i+1:]; strings.HasPrefix(rest, "{") {
			braced, _, _ = strings.Cut(rest[1:], "}")
		}
		switch expr[i] {
		case 'x':
			if n, err := strconv.ParseUint(braced, 16, 32); err == nil && n > 0xff {
				return fmt.Errorf(`\x{%s} is above \x{ff}: write the character itself`, braced)
			}
		case 'p', 'P':
			if name := strings.TrimPrefix(braced, "^"); name != "" && !unicodeClasses[name] {
				return fmt.Errorf(`\p{%s} is not a class that Envoy knows: use another, such as \p{L} or \p{Latin}`, braced)
			}
		}
	}
	return nil
}
