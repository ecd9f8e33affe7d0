package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Cedar's parser tells no positions but a statement's, and its errors point behind the
// token that is wrong. So the text is read into tokens here too, to say where things
// are; what a text means is the parser's alone.

type kind uint8

const (
	kindEnd kind = iota
	kindName
	kindNumber
	kindString
	kindOperator
)

// token is one word of a text.
type token struct {
	kind         kind
	text         string // as it is written
	line, column int    // from 1; columns count characters
	offset       int    // in bytes
}

func (t token) problem(format string, args ...any) Problem {
	return Problem{Line: t.line, Column: t.column, Text: fmt.Sprintf(format, args...)}
}

// found is how a message names what stands there instead.
func (t token) found() string {
	if t.kind == kindEnd {
		return "the end of the text"
	}
	return strconv.Quote(t.text)
}

type scanner struct {
	text         string
	offset       int
	line, column int
	tokens       []token
}

// scan reads a text into its tokens; the last is the end. The problem is nil or the
// first thing that is no token.
func scan(text string) ([]token, *Problem) {
	s := &scanner{text: text, line: 1, column: 1}
	for {
		if p := s.space(); p != nil {
			return nil, p
		}
		start := token{line: s.line, column: s.column, offset: s.offset}
		if s.offset == len(text) {
			return append(s.tokens, start), nil
		}
		k, n, p := s.word(start)
		if p != nil {
			return nil, p
		}
		start.kind, start.text = k, text[s.offset:s.offset+n]
		s.skip(n)
		s.tokens = append(s.tokens, start)
	}
}

// skip goes n bytes on.
func (s *scanner) skip(n int) {
	for _, r := range s.text[s.offset : s.offset+n] {
		if s.column++; r == '\n' {
			s.line, s.column = s.line+1, 1
		}
	}
	s.offset += n
}

// space skips white space and comments.
func (s *scanner) space() *Problem {
	for s.offset < len(s.text) {
		rest := s.text[s.offset:]
		switch {
		case strings.ContainsRune(" \t\r\n", rune(rest[0])):
			s.skip(1)
		case strings.HasPrefix(rest, "//"):
			line, _, _ := strings.Cut(rest, "\n")
			s.skip(len(line))
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				p := token{line: s.line, column: s.column}.problem("the comment does not end")
				return &p
			}
			s.skip(end + 4)
		default:
			return nil
		}
	}
	return nil
}

// word is the kind and length of what starts here.
func (s *scanner) word(start token) (kind, int, *Problem) {
	rest := s.text[s.offset:]
	refuse := func(format string, args ...any) (kind, int, *Problem) {
		p := start.problem(format, args...)
		return 0, 0, &p
	}
	switch c := rest[0]; {
	case isLetter(c):
		return kindName, span(rest, func(c byte) bool { return isLetter(c) || isDigit(c) }), nil
	case isDigit(c):
		n := span(rest, isDigit)
		if v, err := strconv.ParseUint(rest[:n], 10, 64); err != nil || v > 1<<63 || v == 1<<63 && !s.behind("-") {
			return refuse("the number is larger than %d", int64(1<<63-1))
		}
		return kindNumber, n, nil
	case c == '"':
		n, why := s.quoted(rest)
		if why != "" {
			return refuse("%s", why)
		}
		return kindString, n, nil
	case c == '?':
		return refuse("templates are not taken: name the principal or resource instead of ?%s", rest[1:1+span(rest[1:], isLetter)])
	}
	for _, op := range []string{"::", "==", "!=", "<=", ">=", "&&", "||"} {
		if strings.HasPrefix(rest, op) {
			return kindOperator, len(op), nil
		}
	}
	if strings.IndexByte("@.,;(){}[]+-*:!<>", rest[0]) >= 0 {
		return kindOperator, 1, nil
	}
	r, _ := utf8.DecodeRuneInString(rest)
	if r == '=' {
		return refuse("unexpected '=': equality is ==")
	}
	return refuse("unexpected %q", r)
}

// quoted is the length of the string literal that starts here, or why it is none.
func (s *scanner) quoted(rest string) (n int, why string) {
	pattern := s.behind("like")
	for i := 1; i < len(rest); i++ {
		switch rest[i] {
		case '"':
			return i + 1, ""
		case '\n':
			return 0, "the string does not end on its line"
		case '\\':
			size := escape(rest[i+1:], pattern)
			if size == 0 {
				return 0, "the string has an unknown escape: " + strconv.QuoteToASCII(cut(rest[i:], 2))
			}
			i += size
		}
	}
	return 0, "the string does not end"
}

// behind tells whether the last word is text.
func (s *scanner) behind(text string) bool {
	return len(s.tokens) > 0 && s.tokens[len(s.tokens)-1].text == text
}

// escape is the length of what follows a backslash, 0 if it is nothing known.
func escape(s string, pattern bool) int {
	switch {
	case s == "":
		return 0
	case strings.IndexByte(`nrt\0'"`, s[0]) >= 0, s[0] == '*' && pattern:
		return 1
	case s[0] == 'x' && len(s) >= 3:
		if v, err := strconv.ParseUint(s[1:3], 16, 8); err == nil && v < utf8.RuneSelf {
			return 3
		}
	case strings.HasPrefix(s, "u{"):
		digits, _, closed := strings.Cut(cut(s[2:], 40), "}")
		v, err := strconv.ParseUint(strings.ReplaceAll(digits, "_", ""), 16, 32)
		if closed && err == nil && v <= utf8.MaxRune && utf8.ValidRune(rune(v)) {
			return len("u{") + len(digits) + len("}")
		}
	}
	return 0
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

func span(s string, in func(byte) bool) int {
	n := 0
	for n < len(s) && in(s[n]) {
		n++
	}
	return n
}

func cut(s string, n int) string { return s[:min(n, len(s))] }
