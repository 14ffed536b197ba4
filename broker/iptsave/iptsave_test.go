package iptsave

import (
	"reflect"
	"testing"
)

func TestWords(t *testing.T) {
	got := Words(`-A X  -m comment --comment "a \"b\" c" -j LOG --log-prefix ""`)
	want := []string{"-A", "X", "-m", "comment", "--comment", `a "b" c`, "-j", "LOG", "--log-prefix", ""}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}
