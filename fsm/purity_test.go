package fsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pureImports are all the packages the state may be made of. raft.go, where the
// state meets Raft, may have a few more, and state.go has a mutex.
func pureImports(file string) []string {
	pure := []string{
		"bufio", "bytes", "cmp", "crypto/hmac", "crypto/sha256", "encoding/base64", "encoding/binary", "encoding/json",
		"errors", "fmt", "hash", "io", "reflect", "slices", "strings", "unicode/utf8", "unique",
		"github.com/google/uuid", "github.com/tidwall/btree",
	}
	switch file {
	case "raft.go":
		pure = append(pure, "context", "sync", "sync/atomic", "github.com/hashicorp/raft")
	case "audithead.go":
		pure = append(pure, "golang.org/x/mod/sumdb/tlog")
	case "state.go":
		pure = append(pure, "sync")
	}
	return pure
}

// TestPurity: no clock, no randomness, no I/O, no logging, no goroutine, no
// package of this module.
func TestPurity(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	if !slices.Contains(files, "raft.go") || !slices.Contains(files, "state.go") {
		t.Fatalf("found only %v", files)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(pureImports(file), path) || spec.Name != nil {
				t.Errorf("%s imports %s as %v", file, path, spec.Name)
			}
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			checkPure(t, file, n)
			return true
		})
	}
}

func checkPure(t *testing.T, file string, n ast.Node) {
	switch n := n.(type) {
	case *ast.GoStmt:
		t.Errorf("%s starts a goroutine", file)
	case *ast.FuncDecl:
		if n.Name.Name == "init" && n.Recv == nil {
			t.Errorf("%s has an init function", file)
		}
	case *ast.SelectorExpr:
		pkg, ok := n.X.(*ast.Ident)
		if !ok {
			return
		}
		printing := pkg.Name == "fmt" && (strings.HasPrefix(n.Sel.Name, "Print") || strings.HasPrefix(n.Sel.Name, "Scan"))
		minting := pkg.Name == "uuid" && n.Sel.Name != "UUID" && n.Sel.Name != "Nil"
		if printing || minting {
			t.Errorf("%s uses %s.%s", file, pkg.Name, n.Sel.Name)
		}
	}
}
